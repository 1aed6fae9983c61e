"""Log-linear policies of many agents: their pairs in one memory, scored and stepped in few calls.

The pairs of all agents of a process lie end to end in a pool, and their models in one memory. So a
thousand small batches are one selection of the pool's rows, a thousand margins one sum by row, and
a thousand plain steps one vector operation: on the features of the agents' own pairs, outside of
which no gradient of theirs differs from zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd.graph import increment_version

from decdpo.losses.base import Leaves, PairScores
from decdpo.params.flat import FlatParams
from decdpo.params.support import add_at
from decdpo.params.threads import one_thread
from decdpo.policies.features import FeatureDifferences

SPREAD = 8
"""Shards may have this many features for each value of their batches, for a step on all of them to
be cheaper than one that looks for those of the batches."""

MOST_VALUES = 512
"""Values that a pair has in the mean, at most, where pairs of many agents are scored together: a
matter of memory."""


@dataclass(frozen=True)
class FeaturePool:
    """The N pairs of all A agents of a process, end to end, of which each shard is a view.

    differences : (N, P) dphi, sparse. ref_chosen, ref_rejected : (N,) reference log-probabilities.
    score_gap : (N,), or None if the shards have none. bounds : (A + 1,) the first pair of each
    shard, and N.
    """

    differences: FeatureDifferences
    ref_chosen: np.ndarray
    ref_rejected: np.ndarray
    score_gap: Tensor | None
    bounds: np.ndarray

    @cached_property
    def supports(self) -> "Supports":
        """The features of each shard."""
        return Supports.of(self.differences, self.differences.starts[self.bounds])

    def most_features(self, shards: np.ndarray) -> int:
        """Return how many features the ``shards`` (A,) have together, at most."""
        values = np.diff(self.differences.starts[self.bounds]).take(shards)
        return int(np.minimum(values, self.differences.dimension).sum())

    def scores(self, rows: np.ndarray, margins: np.ndarray) -> PairScores:
        """Return the scores of the pairs ``rows`` (N,) with their ``margins`` (N,)."""
        gap = None if self.score_gap is None else self.score_gap[torch.from_numpy(rows)]
        ref_chosen, ref_rejected = self.ref_chosen.take(rows), self.ref_rejected.take(rows)
        return scored(margins, torch.from_numpy(ref_chosen), torch.from_numpy(ref_rejected), gap)


@dataclass(frozen=True)
class Supports:
    """The features that occur in each of A shards, K in all, one shard after another.

    columns : (K,) ascending in each shard. starts : (A + 1,) where those of each shard begin.
    pairs : (N, K) the differences of all pairs by these features.
    """

    columns: np.ndarray
    starts: np.ndarray
    pairs: csr_array

    @classmethod
    def of(cls, differences: FeatureDifferences, starts: np.ndarray) -> "Supports":
        """Find them in ``differences``, of which the values of each shard begin at ``starts``."""
        found = [
            np.unique(differences.columns[first:last], return_inverse=True)
            for first, last in pairwise(starts)
        ]
        begin = np.cumsum([0, *(own.size for own, _ in found)])
        places = np.concatenate([inverse + first for (_, inverse), first in zip(found, begin)])
        shape = (len(differences.starts) - 1, int(begin[-1]))
        pairs = csr_array((differences.values, places, differences.starts), shape=shape)
        return cls(np.concatenate([own for own, _ in found]), begin, pairs)

    def held(self, shards: np.ndarray) -> np.ndarray | slice:
        """Return where in ``columns`` the features of ``shards`` (A',) are, end to end."""
        if np.array_equal(shards, np.arange(self.starts.size - 1)):
            return slice(None)
        return np.concatenate([np.arange(*self.starts[shard : shard + 2]) for shard in shards])


class Pooled(Protocol):
    """The shard of one agent, which is number ``place`` of its ``pool``, if it is in one."""

    @property
    def pool(self) -> FeaturePool | None: ...

    @property
    def place(self) -> int: ...


@dataclass(frozen=True)
class Joined:
    """Batches of A agents, N pairs in all, that lie in one pool, and their models in one memory.

    rows : (N,) of the pool. bounds : (A + 1,) the first pair of each batch, and N. shards : (A,)
    their numbers. models : the agents' own. memory : all that lies beside these, as one vector.
    offsets : (A,) where each model begins there.
    """

    pool: FeaturePool
    rows: np.ndarray
    bounds: np.ndarray
    shards: np.ndarray
    models: list[FlatParams]
    memory: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, batches: Sequence[tuple[FlatParams, Pooled, np.ndarray]]) -> "Joined | None":
        """Join batches, each with its model; None if they do not lie in one memory."""
        models, shards, rows = zip(*batches)
        pool, one = shards[0].pool, models[0].data
        home = one.untyped_storage()
        if pool is None or any(shard.pool is not pool for shard in shards):
            return None
        if any(x.data.untyped_storage().data_ptr() != home.data_ptr() for x in models):
            return None
        sizes = [len(some) for some in rows]
        places = np.array([shard.place for shard in shards])
        memory = one.as_strided((home.nbytes() // one.itemsize,), (1,), 0).numpy()
        return cls(
            pool,
            np.concatenate(rows) + np.repeat(pool.bounds.take(places), sizes),
            np.cumsum([0, *sizes]),
            places,
            list(models),
            memory,
            np.array([params.data.storage_offset() for params in models]),
        )


@dataclass
class LogLinearJointPass:
    """Several batches in one (``JointPass``), their pairs end to end."""

    scores: PairScores
    joined: Joined
    pairs: FeatureDifferences

    @classmethod
    def of(cls, joined: Joined) -> "LogLinearJointPass":
        """Score the batches."""
        pairs = joined.pool.differences.batch(joined.rows)
        values = np.diff(pairs.starts[joined.bounds])
        places = pairs.columns + np.repeat(joined.offsets, values)
        margins = pairs.row_sums(joined.memory.take(places))
        return cls(joined.pool.scores(joined.rows, margins), joined, pairs)

    def backward(self, cotangents: Leaves) -> Iterator[None]:
        """Add sum_b (d_w pi_l - d_l pi_w) dphi_b of one batch after another."""
        scaled = self.pairs.scaled(slopes(self.scores, cotangents).numpy())
        places = self.pairs.starts[self.joined.bounds].tolist()
        for params, *held in zip(self.joined.models, places, places[1:]):
            part = slice(*held)
            add_at(params.grad, self.pairs.columns[part], scaled[part])
            yield


class LogLinearJointStep:
    """Several batches with the plain steps along their gradients (``JointStep``).

    Every model is taken down to the features of its shard; of all shards together, these are a
    vector theta (K,), of which each pair of the pool has a few values.
    """

    def __init__(self, joined: Joined) -> None:
        supports = joined.pool.supports
        self._joined = joined
        self._pairs = supports.pairs
        self._sizes = np.diff(supports.starts).take(joined.shards)
        self._held = supports.held(joined.shards)
        self._addresses = supports.columns[self._held] + np.repeat(joined.offsets, self._sizes)
        self._theta = np.zeros(supports.columns.size, dtype=joined.memory.dtype)
        self._theta[self._held] = joined.memory.take(self._addresses)
        self._grad = np.zeros_like(self._theta)

    def scores(self, first: int, last: int) -> PairScores:
        """Return the scores (N',) of the batches ``first`` ... ``last`` - 1, end to end."""
        rows = self._joined.rows[slice(*self._joined.bounds[[first, last]])]
        some = self._pairs[rows]
        margins = np.add.reduceat(some.data * self._theta.take(some.indices), some.indptr[:-1])
        self._some, self._scores = some, self._joined.pool.scores(rows, margins)
        return self._scores

    def backward(self, cotangents: Leaves) -> None:
        """Add up the gradients of the batches that were scored last, one pair after another."""
        some = self._some
        slope = np.repeat(slopes(self._scores, cotangents).numpy(), np.diff(some.indptr))
        np.add.at(self._grad, some.indices, some.data * slope)

    def descend(self, rates: Sequence[float]) -> np.ndarray:
        """Take the step x <- x - eta g of every batch; say whether its g is finite, (A,)."""
        theta, grad = self._theta[self._held], self._grad[self._held]
        starts = np.cumsum(self._sizes) - self._sizes
        finite: np.ndarray = np.logical_and.reduceat(np.isfinite(grad), starts)
        # Several at once where they agree on the step size: the bits of a value are its own.
        cuts = starts[1:] if len(set(rates)) > 1 else starts[:0]
        for rate, x, g in zip(rates, np.split(theta, cuts), np.split(grad, cuts)):
            torch.from_numpy(x).add_(torch.from_numpy(g), alpha=-rate)
        self._joined.memory[self._addresses] = theta
        increment_version([params.data for params in self._joined.models])
        return finite


@one_thread()
def choice(margins: np.ndarray) -> tuple[Tensor, Tensor]:
    """Turn margins (B,) into the log-probabilities of the chosen and rejected answers."""
    m = torch.from_numpy(margins)
    return torch.nn.functional.logsigmoid(m), torch.nn.functional.logsigmoid(-m)


def scored(
    margins: np.ndarray, ref_chosen: Tensor, ref_rejected: Tensor, gap: Tensor | None
) -> PairScores:
    """Return the scores of pairs with their margins (B,) and reference log-probabilities (B,)."""
    chosen, rejected = choice(margins)
    length = torch.ones_like(chosen)  # An answer is a single step.
    return PairScores(chosen, rejected, ref_chosen, ref_rejected, length, length, gap)


@one_thread()
def slopes(scores: PairScores, cotangents: Leaves) -> Tensor:
    """Return d_w pi_l - d_l pi_w of every pair (B,), the derivative by its margin."""
    chosen, rejected = scores.chosen, scores.rejected
    return cotangents["chosen"] * rejected.exp() - cotangents["rejected"] * chosen.exp()
