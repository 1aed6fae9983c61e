"""The objective: a policy and a preference loss, joined into a gradient and its statistics.

The loss sees nothing but the (B,) log-probabilities. Its derivatives by them, the cotangents, are
all that travels back into the policy, so any loss works with any policy.

Batches of several agents are scored together where policy and loss allow it: with models as small
as the log-linear one, a thousand agents in one process would otherwise spend their time in a
thousand small calls. The bits are those of each batch scored alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import NumericalError, PolicyError
from decdpo.losses.base import PairLogProbs, PairLoss, RunningLoss, couples_pairs
from decdpo.params.flat import FlatParams
from decdpo.policies.base import ForwardPass, Policy
from decdpo.policies.encoded import EncodedShard
from decdpo.policies.stats import Stats, summarize

LANES = 32
"""Every batch is filled up to a multiple of so many pairs before the loss sees it. A vector
operation rounds what is left over after its last full step (32 float32 values at most) unlike the
rest; filled up, a pair is rounded alike whatever lies beside it."""

GROUP_LANES = 4096
"""Pairs scored together at most, filled up. Far below the 32,768 values at which torch divides a
vector between threads, which would cut it elsewhere than at a multiple of ``LANES``."""


class Batch(NamedTuple):
    """Some pairs of one agent, to be scored by a model.

    params : the model. data : the agent's encoded shard. rows : (B,) shard rows. running : (1,) the
    agent's running statistic, for a loss that has one.
    """

    params: FlatParams
    data: EncodedShard
    rows: np.ndarray
    running: Tensor | None = None


class Scores(NamedTuple):
    """One scored batch: the cotangents (B,) of the mean loss, and the statistics."""

    d_chosen: Tensor
    d_rejected: Tensor
    stats: Stats


@dataclass(frozen=True)
class Objective:
    """A policy trained by a loss: L_i(theta) = E_{D_i}[loss(log pi_theta, log pi_ref)].

    policy : the model family. loss : a function of log-probabilities.
    """

    policy: Policy
    loss: PairLoss | RunningLoss

    def gradient(self, params: FlatParams, data: EncodedShard, rows: np.ndarray) -> Stats:
        """Overwrite ``params.grad`` (P,) with the gradient of the batch's mean loss.

        rows : (B,) shard rows. Weighted pairs count by their weight over the mean weight of the
        training pairs, so that the batch gradient is unbiased. Returns the batch's statistics.

        Raises ``NumericalError`` naming agent and rows if a loss or log-probability is not finite.
        """
        return next(self.gradients([Batch(params, data, rows)]))

    def gradients(self, batches: Iterable[Batch]) -> Iterator[Stats]:
        """Do ``gradient`` for one batch after another, yielding after each.

        When a batch is yielded, its gradient is in its ``params.grad``, its running statistic is
        updated, and its parameters may be changed; batches may share the buffer of the gradient.
        Raises as ``gradient`` does.
        """
        loss = self.loss if isinstance(self.loss, RunningLoss) else None
        for group in self._groups(batches):
            # An overflow is reported with its rows, as an error: NumPy need not warn of it as well.
            with np.errstate(over="ignore", invalid="ignore"):
                passes = [self._forward(batch) for batch in group]
                scored = self._score(group, passes)
            for batch, forward, scores in zip(group, passes, scored):
                batch.params.grad.zero_()
                with np.errstate(over="ignore", invalid="ignore"):
                    forward.backward(scores.d_chosen, scores.d_rejected)
                if loss is not None and batch.running is not None:
                    batch.running.copy_(loss.update(batch.running, forward.logps))
                yield scores.stats

    def evaluate(
        self, params: FlatParams, data: EncodedShard, rows: np.ndarray, batch_size: int = 64
    ) -> Stats:
        """Return the statistics of the pairs ``rows`` (B,) without touching ``params.grad``.

        batch_size : pairs evaluated at once; a matter of memory only. Raises as ``gradient`` does.
        """
        return self.evaluations([Batch(params, data, rows)], batch_size)[0]

    def evaluations(self, batches: Sequence[Batch], batch_size: int = 64) -> list[Stats]:
        """Do ``evaluate`` for every batch; one without pairs has the statistics of none."""
        totals = [Stats.zero() for _ in batches]
        parts = [
            (place, batch._replace(rows=rows))
            for place, batch in enumerate(batches)
            for rows in _parts(batch.rows, batch_size)
        ]
        places = iter([place for place, _ in parts])
        for group in self._groups(part for _, part in parts):
            with np.errstate(over="ignore", invalid="ignore"):
                passes = [self._forward(part, need_grad=False) for part in group]
                scored = self._score(group, passes)
            for scores in scored:
                totals[next(places)] += scores.stats
        return totals

    def _groups(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Put together the batches that are scored together."""
        group: list[Batch] = []
        lanes = 0
        for batch in batches:
            size = _filled(len(batch.rows), self._width)
            if group and not (self._together and lanes + size <= GROUP_LANES):
                yield group
                group, lanes = [], 0
            group.append(batch)
            lanes += size
        if group:
            yield group

    @property
    def _together(self) -> bool:
        """Whether batches may be scored together."""
        return self.policy.concurrent and not couples_pairs(self.loss)

    @property
    def _width(self) -> int:
        """What the size of every batch is filled up to a multiple of."""
        return LANES if self._together else 1

    def _forward(self, batch: Batch, need_grad: bool = True) -> ForwardPass:
        return self.policy.forward(batch.params, batch.data, batch.rows, need_grad=need_grad)

    def _loss(self, batch: Batch) -> PairLoss:
        """Return the loss that ``batch`` meets; the same for all where it does not run."""
        if not isinstance(self.loss, RunningLoss):
            return self.loss
        if batch.running is None:
            raise ValueError("a loss with a running statistic needs the agent's")
        return self.loss.at(batch.running)

    def _score(self, group: list[Batch], passes: list[ForwardPass]) -> list[Scores]:
        """Return cotangents and statistics of every batch of a group."""
        lanes = _Lanes([len(batch.rows) for batch in group], self._width)
        pairs = lanes.fill([forward.logps for forward in passes])
        weight = _weights(group)
        # d mean(losses) / d loss_b = w_b / B
        share = np.repeat(1.0 / lanes.sizes, lanes.sizes) * (1.0 if weight is None else weight)
        with torch.enable_grad():
            chosen, rejected = pairs.chosen.requires_grad_(), pairs.rejected.requires_grad_()
            losses = self._loss(group[0])(pairs)
            slopes = torch.autograd.grad(
                losses, (chosen, rejected), lanes.spread(share, losses), allow_unused=True
            )
        # A loss may ignore one of the answers; its cotangent is then zero.
        both = [torch.zeros_like(losses) if slope is None else slope for slope in slopes]
        logps = (chosen, rejected, pairs.ref_chosen, pairs.ref_rejected)
        stacked = lanes.drop(torch.stack((losses, *logps, *both)).detach())
        values = stacked.to("cpu", torch.float64).numpy()
        if not np.isfinite(values).all():
            raise _not_finite(values, group, lanes.starts)
        stats = summarize(values, lanes.starts, weight, self.loss.beta)
        cotangents = stacked[5:].split(lanes.sizes.tolist(), dim=1)
        return [Scores(slope[0], slope[1], each) for slope, each in zip(cotangents, stats)]


class _Lanes:
    """Where the pairs of A batches lie once each batch is filled up to a multiple of ``width``.

    sizes : (A,) pairs of every batch, at least 1. starts : (A,) where each begins, unfilled.
    """

    def __init__(self, sizes: list[int], width: int) -> None:
        self.sizes = np.array(sizes)
        self.starts = np.cumsum(self.sizes) - self.sizes
        filled = _filled(self.sizes, width)
        self._exact = bool((filled == self.sizes).all())
        within = np.arange(filled.sum()) - np.repeat(np.cumsum(filled) - filled, filled)
        last = np.repeat(self.sizes - 1, filled)
        # What fills up is a repetition of the batch's last pair: a loss can always take that.
        self._source = torch.from_numpy(np.repeat(self.starts, filled) + np.minimum(within, last))
        self._kept = torch.from_numpy(np.flatnonzero(within <= last))

    def fill(self, batches: list[PairLogProbs]) -> PairLogProbs:
        """Join the log-probabilities of all batches, filled up."""
        joined: dict[str, Any] = {}
        for field in fields(PairLogProbs):
            columns = [getattr(batch, field.name) for batch in batches]
            known = all(column is not None for column in columns)
            joined[field.name] = self._take(torch.cat(columns), self._source) if known else None
        return PairLogProbs(**joined)

    def spread(self, values: np.ndarray, like: Tensor) -> Tensor:
        """Put one value (N,) at every pair and 0 at what fills up, with the type of ``like``."""
        given = torch.from_numpy(values).to(like)
        if self._exact:
            return given
        return torch.zeros_like(like).index_copy_(0, self._kept.to(like.device), given)

    def drop(self, filled: Tensor) -> Tensor:
        """Return the columns of ``filled`` that belong to a pair, (K, N)."""
        return self._take(filled, self._kept)

    def _take(self, vector: Tensor, places: Tensor) -> Tensor:
        return vector if self._exact else vector.index_select(-1, places.to(vector.device))


def _filled(size: Any, width: int) -> Any:
    """Return ``size``, or every size of an array, filled up to a multiple of ``width``."""
    return -(-size // width) * width


def _weights(group: list[Batch]) -> np.ndarray | None:
    """Return the weights (N,) of all pairs of the group, None if they count alike."""
    if all(batch.data.weight is None for batch in group):
        return None
    weights = [
        np.ones(len(rows)) if data.weight is None else data.weight[rows]
        for _, data, rows, _ in group
    ]
    return np.concatenate(weights)


def check_start(policy: Policy, data: EncodedShard, batch_size: int = 16, batches: int = 1) -> None:
    """Check that rewards are exactly 0 where training begins: the policy is the reference.

    Evaluates the first ``batches`` batches of the shard at ``policy.initial()``.
    Raises ``PolicyError`` naming the first pair whose log-ratio is not zero.
    """
    params = FlatParams(policy.layout, policy.initial())
    rows = np.arange(min(data.num_pairs, batch_size * batches))
    for part in _parts(rows, batch_size):
        logps = policy.forward(params, data, part, need_grad=False).logps
        drift = torch.stack((logps.chosen_ratio, logps.rejected_ratio)).abs().amax(dim=0)
        wrong = torch.nonzero(~(drift == 0)).flatten().tolist()
        if wrong:
            raise PolicyError(
                f"agent {data.agent}: at step 0 the rewards must be 0, but the log-ratio of"
                f" {_name_rows(data, part[wrong[:1]])} is {drift[wrong[0]].item():.3g} nats",
                "discard the cached reference log-probabilities: they are of another reference",
            )


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _name_rows(data: EncodedShard, rows: np.ndarray) -> str:
    named = f"shard row {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
    return f"{named} (source row {data.source_rows.name(rows[:8])})"


def _not_finite(stacked: np.ndarray, group: list[Batch], starts: np.ndarray) -> NumericalError:
    """Make the error for the first batch with a value that is not finite in ``stacked`` (7, N)."""
    pair = np.flatnonzero(~np.isfinite(stacked).all(axis=0))[0]
    place = int(np.searchsorted(starts, pair, side="right")) - 1
    _, data, rows, _ = group[place]
    stacked = stacked[:, starts[place] : starts[place] + len(rows)]
    names = (
        "loss",
        "log pi(chosen)",
        "log pi(rejected)",
        "log pi_ref(chosen)",
        "log pi_ref(rejected)",
        "dloss/dlog pi(chosen)",
        "dloss/dlog pi(rejected)",
    )
    bad = ~np.isfinite(stacked)
    # The log-probabilities come before the loss that is computed from them.
    first = next(i for i in (1, 2, 3, 4, 0, 5, 6) if bad[i].any())
    where = np.flatnonzero(bad[first])
    return NumericalError(
        f"agent {data.agent}: {names[first]} is {stacked[first, where[0]]} at"
        f" {_name_rows(data, rows[where])}",
        "lower optim.lr or, unless algorithm.kind = 'exact_diffusion', set optim.clip_norm",
    )
