"""The log-linear softmax policy: the policy of the theory, with exact gradients and no autograd.

    pi(u | s) = exp(theta . phi(s, u)) / sum_u' exp(theta . phi(s, u'))

as a one-step choice u between the two answers of a pair. With the margin m = theta . dphi,
dphi = phi(x, y_w) - phi(x, y_l): log pi(y_w | x) = ln sigma(m) and log pi(y_l | x) = ln sigma(-m).
In DPO the normaliser cancels, which leaves logistic regression on feature differences:
grad L = -beta E[sigma(-beta (m - m_ref)) dphi], and the Hessian is at most
(beta^2 / 4) lambda_max(E[dphi dphi^T]).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decdpo.data.shard import PreferenceShard
from decdpo.errors import PolicyError
from decdpo.losses.base import Leaves, PairScores
from decdpo.params.flat import FlatParams, Layout
from decdpo.params.support import add_at
from decdpo.policies.arrays import (
    CPU,
    parameter_dtype,
    reference_digest,
    reference_vector,
    write_npz,
)
from decdpo.policies.encoded import (
    EncodedShard,
    Tally,
    require_held,
    require_text,
    shard_columns,
)
from decdpo.policies.features import (
    FeatureDifferences,
    Hashing,
    column_differences,
    hashed_differences,
)
from decdpo.policies.joint import Apart, JointPass, JointStep
from decdpo.policies.pooled import (
    MOST_VALUES,
    SPREAD,
    FeaturePool,
    Joined,
    LogLinearJointPass,
    LogLinearJointStep,
    choice,
    scored,
    slopes,
)

MOST_TOGETHER = 1 << 19
"""Features that batches which are scored in one call have together, at most: a matter of memory."""


@dataclass(frozen=True)
class FeatureShard(EncodedShard):
    """One agent's N pairs as feature differences.

    differences : (N, P) dphi, sparse. ref_chosen, ref_rejected : (N,) reference log-probabilities.
    pool : the pairs of all agents, of which it is shard number ``place``; None if it is alone.
    """

    differences: FeatureDifferences
    ref_chosen: np.ndarray
    ref_rejected: np.ndarray
    pool: FeaturePool | None = None
    place: int = 0


@dataclass
class LogLinearPass:
    """One batch: its log-probabilities, and their derivatives in closed form (``CurvedPass``)."""

    scores: PairScores
    params: FlatParams
    batch: FeatureDifferences

    def backward(self, cotangents: Leaves) -> None:
        """Add sum_b (d_w pi_l - d_l pi_w) dphi_b to ``params.grad``."""
        slope = slopes(self.scores, cotangents).numpy()
        add_at(self.params.grad, self.batch.columns, self.batch.scaled(slope))

    def along(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the derivatives (B,) of both log-probabilities along ``direction`` (P,)."""
        chosen, rejected = self.scores.chosen.exp().numpy(), self.scores.rejected.exp().numpy()
        margins = self.batch.matrix @ direction
        return rejected * margins, -chosen * margins

    def back(self, d_chosen: np.ndarray, d_rejected: np.ndarray) -> np.ndarray:
        """Return sum_b (d_w pi_l - d_l pi_w) dphi_b, (P,)."""
        chosen, rejected = self.scores.chosen.exp().numpy(), self.scores.rejected.exp().numpy()
        return self.batch.matrix.T @ (d_chosen * rejected - d_rejected * chosen)

    def bend(
        self, d_chosen: np.ndarray, d_rejected: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return -sum_b (d_w + d_l) pi_w pi_l dphi_b (dphi_b . v), (P,)."""
        variance = (self.scores.chosen + self.scores.rejected).exp().numpy()
        matrix = self.batch.matrix
        return -matrix.T @ ((d_chosen + d_rejected) * variance * (matrix @ direction))

    def squared_norms(self, d_chosen: Tensor, d_rejected: Tensor) -> np.ndarray:
        """Return (B,) the squared norm of every pair's own gradient."""
        slope = d_chosen * self.scores.rejected.exp() - d_rejected * self.scores.chosen.exp()
        squares = np.add.reduceat(np.square(self.batch.values), self.batch.starts[:-1])
        return np.square(slope.numpy()) * squares


class FeatureReference:
    """The reference values of a ``FeatureShard``, computed when it was encoded."""

    def scores(self, data: FeatureShard, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (B,) log pi_ref of the chosen and of the rejected answers of ``rows`` (B,)."""
        # NumPy's take costs a fifth of torch's indexing on batches this small.
        return (
            torch.from_numpy(data.ref_chosen.take(rows)),
            torch.from_numpy(data.ref_rejected.take(rows)),
        )


class LogLinear:
    """The log-linear softmax policy on hashed text features or on explicit feature columns.

    Parameters
    ----------
    dimension : P, the number of features; for "columns" that of the shards.
    features : "hashed" (words and pairs of adjacent words of the answers) or "columns".
    dtype : "float32" or "float64".
    seed : chooses the hash function of "hashed" features; agents must agree on it.
    reference : (P,) theta_ref, where every agent begins; zeros (indifference) by default.

    Lives on the CPU. Raises ``PolicyError`` for arguments that make no policy.
    """

    concurrent = True
    identity: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    device = CPU

    def __init__(
        self,
        dimension: int = 2**16,
        features: str = "hashed",
        dtype: str = "float32",
        seed: int = 0,
        reference: np.ndarray | None = None,
    ) -> None:
        if dimension < 1:
            raise PolicyError(f"dimension = {dimension}: a log-linear policy needs a feature")
        if features not in ("hashed", "columns"):
            raise PolicyError(f"features = {features!r}", "choose 'hashed' or 'columns'")
        if not 0 <= seed < 2**64:
            raise PolicyError(f"seed = {seed}", "choose a seed in [0, 2**64)")
        self.layout = Layout(("theta",), ((dimension,),), dimension, parameter_dtype(dtype))
        self.features = features
        self.seed = seed
        self._hashing = Hashing(dimension, seed)
        self._dtype = np.dtype(dtype)
        self._reference = reference_vector(reference, dimension, dtype)
        self.reference = FeatureReference()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of theta_ref and of how answers become features."""
        return reference_digest("loglinear", self._reference, self.features, self.seed)

    def initial(self) -> Tensor:
        """Return a new (P,) vector: theta_ref."""
        return torch.from_numpy(self._reference).clone()

    def encode(self, shard: PreferenceShard) -> FeatureShard:
        """Build the feature differences of a shard, and the reference's log-probabilities.

        Raises ``PolicyError`` if the shard's feature columns are not the policy's, ``DataError`` if
        the policy would see nothing of a pair, or cannot hold its numbers.
        """
        dimension = self.layout.size
        if self.features == "hashed":
            require_text(
                shard,
                'policy.features = "hashed"',
                'set policy.features = "columns" to train on the feature columns of the shards',
            )
            answers = ((p.chosen, p.rejected) for p in shard.pairs(np.arange(shard.num_pairs)))
            differences = hashed_differences(answers, self._hashing, self._dtype)
        else:
            if shard.features is None:
                raise PolicyError(
                    f"agent {shard.agent}: the shard has no feature columns",
                    "use features = 'hashed', or shard a source that has them",
                )
            chosen, rejected = shard.features
            if chosen.shape[1] != dimension:
                raise PolicyError(
                    f"agent {shard.agent}: {chosen.shape[1]} feature columns,"
                    f" but the policy has {dimension}",
                    f"set dimension = {chosen.shape[1]}",
                )
            with np.errstate(over="ignore"):
                gaps = chosen - rejected
            require_held(shard, "the difference of feature", gaps, self.layout.dtype)
            differences = column_differences(chosen, rejected, self._dtype)
        ref_chosen, ref_rejected = choice(differences.margins(self._reference))
        alike = differences.alike
        same = "pairs have answers with equal features: they teach nothing"
        tallies = (Tally(int(alike.sum()), len(alike), same),)
        return FeatureShard(
            **shard_columns(shard, self.layout.dtype, CPU, alike, tallies),
            differences=differences,
            ref_chosen=ref_chosen.numpy(),
            ref_rejected=ref_rejected.numpy(),
        )

    def parts(self, data: FeatureShard, rows: np.ndarray) -> list[np.ndarray]:
        """Return the pairs ``rows`` (B,) in one part: their scores take little memory."""
        return [rows]

    def forward(
        self, params: FlatParams, data: FeatureShard, rows: np.ndarray, *, need_grad: bool = True
    ) -> LogLinearPass:
        """Evaluate the pairs ``rows`` (B,) of ``data`` at theta = ``params.data`` (P,)."""
        batch = data.differences.batch(rows)
        gap = None if data.score_gap is None else data.score_gap[torch.from_numpy(rows)]
        margins = batch.margins(params.data.numpy())
        scores = scored(margins, *self.reference.scores(data, rows), gap)
        return LogLinearPass(scores, params, batch)

    def pool(self, shards: Sequence[FeatureShard]) -> list[FeatureShard]:
        """Lay the pairs of several shards end to end, for ``forward_all`` and ``step_all``."""
        gaps = [shard.score_gap for shard in shards if shard.score_gap is not None]
        bounds = np.cumsum([0, *(shard.num_pairs for shard in shards)])
        pool = FeaturePool(
            FeatureDifferences.stacked([shard.differences for shard in shards]),
            np.concatenate([shard.ref_chosen for shard in shards]),
            np.concatenate([shard.ref_rejected for shard in shards]),
            torch.cat(gaps) if len(gaps) == len(shards) else None,
            bounds,
        )
        return [
            replace(
                shard,
                differences=pool.differences.view(first, last),
                ref_chosen=pool.ref_chosen[first:last],
                ref_rejected=pool.ref_rejected[first:last],
                pool=pool,
                place=place,
            )
            for place, (shard, (first, last)) in enumerate(zip(shards, pairwise(bounds.tolist())))
        ]

    def forward_all(
        self, batches: Sequence[tuple[FlatParams, FeatureShard, np.ndarray]]
    ) -> JointPass:
        """Evaluate several batches, each with its model, in one call where they lie in one memory.

        The bits are those of ``forward``. Batches with many features gain nothing and are evaluated
        one by one.
        """
        joined = Joined.of(batches)
        if joined and joined.pool.differences.count(joined.rows) <= MOST_TOGETHER:
            return LogLinearJointPass.of(joined)
        sizes = [len(rows) for _, _, rows in batches]
        return Apart([self.forward(*batch) for batch in batches], sizes)

    def step_all(
        self, batches: Sequence[tuple[FlatParams, FeatureShard, np.ndarray]]
    ) -> JointStep | None:
        """Take down the models of all ``batches`` for plain steps in few calls, each with its own.

        Returns None where that is no gain: where they do not lie in one memory, or have many
        features.
        """
        joined = Joined.of(batches)
        if joined is None:
            return None
        pool, rows = joined.pool, joined.rows
        values = pool.differences.count(rows)
        if values > MOST_VALUES * len(rows) or pool.most_features(joined.shards) > SPREAD * values:
            return None
        return LogLinearJointStep(joined)

    def export(self, x: Tensor, out: str | os.PathLike[str]) -> Path:
        """Write theta = ``x`` (P,) with what it takes to use it to the file ``out`` (.npz).

        Keys: theta (P,), theta_ref (P,), features, seed. Returns the path.
        """
        arrays = {
            "theta": x.detach().cpu().numpy(),
            "theta_ref": self._reference,
            "features": np.array(self.features),
            "seed": np.array(self.seed, dtype=np.uint64),
        }
        return write_npz(out, arrays)
