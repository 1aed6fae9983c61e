"""The log-linear softmax policy on trajectories: normalisers kept, exact gradients, no autograd.

    pi(u | s) = exp(theta . phi(s, u)) / sum_u' exp(theta . phi(s, u'))
    log pi(y | x) = sum_t (theta . phi(s_t, u_t) - ln Z(s_t)),   Z(s) = sum_u exp(theta . phi(s, u))

with finitely many states s and actions u. Two sums per trajectory are all that is needed of it:
F(y) = sum_t phi(s_t, u_t), (d,), and c(y), how often each state is visited, (S,). Then

    log pi(y)        = theta . F - c . ln Z                                      (1)
    grad log pi(y)   = F - sum_s c_s phi_bar(s),   phi_bar(s) = E_u~pi(.|s) phi(s, u)   (2)
    Hess log pi(y)   = -sum_s c_s Cov_u~pi(.|s) phi(s, u)                        (3)

so a batch costs one pass over the (S, A, d) feature map and a few products with (B, d), whatever
the horizon. Unlike a choice between two answers, log pi is concave in theta and (3) does not
vanish: the DPO loss on trajectories need not be convex.

References: Jiang, "Distributed Direct Preference Optimization", 2026, Appendix A, for the policy.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decdpo.data.shard import PreferenceShard
from decdpo.data.trajectories import features_digest, read_answers
from decdpo.errors import PolicyError
from decdpo.losses.base import Leaves, PairScores
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.arrays import (
    CPU,
    SideReference,
    first_too_large,
    pair_logps,
    parameter_dtype,
    reference_digest,
    reference_vector,
    write_npz,
)
from decdpo.policies.encoded import EncodedShard, require_text, shard_columns
from decdpo.policies.features import FeatureDifferences


@dataclass(frozen=True)
class Side:
    """One of the two answers of each of N pairs.

    features : (N, d) F(y), the features summed over the steps. visits : (N, S) c(y), sparse.
    length : (N,) steps. reference : (N,) log pi_ref(y|x).
    """

    features: np.ndarray
    visits: FeatureDifferences
    length: Tensor
    reference: np.ndarray


@dataclass(frozen=True)
class TrajectoryShard(EncodedShard):
    """One agent's N pairs of trajectories."""

    chosen: Side
    rejected: Side


@dataclass(frozen=True)
class Actions:
    """The policy at one theta: features (S, A, d), probabilities (S, A), log_normaliser (S,)."""

    features: np.ndarray
    probabilities: np.ndarray
    log_normaliser: np.ndarray

    @classmethod
    def at(cls, features: np.ndarray, theta: np.ndarray) -> "Actions":
        """Evaluate pi(. | s) for every state at theta (d,)."""
        scores = features @ theta
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=1, keepdims=True)
        return cls(features, weights / total, (top + np.log(total))[:, 0])

    @property
    def mean(self) -> np.ndarray:
        """phi_bar(s), (S, d)."""
        return np.einsum("su,sud->sd", self.probabilities, self.features)


@dataclass
class TrajectoryPass:
    """One batch: its log-probabilities, and their derivatives in closed form (``CurvedPass``)."""

    scores: PairScores
    params: FlatParams
    sides: tuple[tuple[np.ndarray, FeatureDifferences], ...]
    actions: Actions

    def backward(self, cotangents: Leaves) -> None:
        """Add the gradient, eq. (2), to ``params.grad``."""
        self.params.grad.numpy()[:] += self.back(
            cotangents["chosen"].numpy(), cotangents["rejected"].numpy()
        )

    def back(self, d_chosen: np.ndarray, d_rejected: np.ndarray) -> np.ndarray:
        """Return sum_b d_w,b grad log pi(y_w) + d_l,b grad log pi(y_l), (P,)."""
        total = -self._visited(d_chosen, d_rejected) @ self.actions.mean
        for (features, _), cotangent in zip(self.sides, (d_chosen, d_rejected), strict=True):
            total += cotangent @ features
        return total

    def along(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the derivatives (B,) of both log-probabilities along ``direction`` (P,)."""
        mean = self.actions.mean @ direction
        chosen, rejected = (f @ direction - visits.margins(mean) for f, visits in self.sides)
        return chosen, rejected

    def bend(
        self, d_chosen: np.ndarray, d_rejected: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return sum_b (d_w,b Hess log pi(y_w) + d_l,b Hess log pi(y_l)) v, eq. (3)."""
        features, probabilities = self.actions.features, self.actions.probabilities
        slopes = features @ direction
        slopes -= (probabilities * slopes).sum(axis=1, keepdims=True)
        weights = self._visited(d_chosen, d_rejected)[:, None] * probabilities * slopes
        return -np.einsum("su,sud->d", weights, features)

    def squared_norms(self, d_chosen: Tensor, d_rejected: Tensor) -> np.ndarray:
        """Return (B,) the squared norm of every pair's own gradient."""
        total, mean = 0.0, self.actions.mean
        both = (d_chosen.numpy(), d_rejected.numpy())
        for (features, visits), cotangent in zip(self.sides, both, strict=True):
            total = total + cotangent[:, None] * (features - visits.matrix @ mean)
        return np.square(total).sum(axis=1)

    def _visited(self, d_chosen: np.ndarray, d_rejected: np.ndarray) -> np.ndarray:
        """Return sum_b d_w,b c(y_w) + d_l,b c(y_l), (S,)."""
        total = np.zeros_like(self.actions.log_normaliser)
        for (_, visits), cotangent in zip(self.sides, (d_chosen, d_rejected), strict=True):
            visits.add_combination(cotangent, total)
        return total


class Trajectory:
    """The log-linear policy on trajectories of a task with a finite number of actions.

    Parameters
    ----------
    features : (S, A, d) the feature map phi.
    dtype : "float32" or "float64".
    reference : (d,) theta_ref, where every agent begins; zeros (the uniform policy) by default.

    Lives on the CPU. Raises ``PolicyError`` for arguments that make no policy.
    """

    concurrent = True
    identity: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    device = CPU

    def __init__(
        self, features: np.ndarray, dtype: str = "float32", reference: np.ndarray | None = None
    ) -> None:
        if features.ndim != 3 or not features.size or not np.isfinite(features).all():
            raise PolicyError(
                f"a feature map of shape {features.shape}",
                "give finite values of shape (states, actions, dimension)",
            )
        self.num_states, self.num_actions, dimension = features.shape
        self.features_digest = features_digest(features)
        # Agents with another feature map must not be mixed with: their theta means another thing.
        name = f"theta of phi {self.features_digest[:16]}"
        self.layout = Layout((name,), ((dimension,),), dimension, parameter_dtype(dtype))
        self._dtype = np.dtype(dtype)
        place = first_too_large(features, self.layout.dtype)
        if place is not None:
            raise PolicyError(
                f"feature {place[2]} of state {place[0]} and action {place[1]} is "
                f"{features[place]:g}, which {dtype} cannot hold",
                "scale the feature map down, or set policy.dtype = \"float64\" if it fits that",
            )
        self._features = np.ascontiguousarray(features, dtype=self._dtype)
        self._reference = reference_vector(reference, dimension, dtype)
        self.reference = SideReference()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of theta_ref and of the feature map."""
        return reference_digest("trajectory", self._reference, self.features_digest)

    def initial(self) -> Tensor:
        """Return a new (d,) vector: theta_ref."""
        return torch.from_numpy(self._reference).clone()

    def encode(self, shard: PreferenceShard) -> TrajectoryShard:
        """Sum up the trajectories of a shard, and evaluate the reference on them.

        Raises ``DataError`` for a text that is no trajectory of this task.
        """
        at_reference = Actions.at(self._features, self._reference)
        chosen, rejected = (
            self._side(steps, lengths, at_reference)
            for steps, lengths in read_answers(shard, self.num_states, self.num_actions)
        )
        require_text(
            shard,
            'policy.kind = "trajectory"',
            'set policy.kind = "loglinear" and policy.features = "columns"',
        )
        columns = shard_columns(shard, self.layout.dtype, CPU)
        return TrajectoryShard(**columns, chosen=chosen, rejected=rejected)

    def _side(self, steps: np.ndarray, lengths: np.ndarray, at_reference: Actions) -> Side:
        pairs = len(lengths)
        rows = np.repeat(np.arange(pairs), lengths)
        features = np.zeros((pairs, self.layout.size), dtype=self._dtype)
        np.add.at(features, rows, self._features[steps[:, 0], steps[:, 1]])
        visits = count_visits(rows, steps[:, 0], pairs, self.num_states, self._dtype)
        return Side(
            features,
            visits,
            torch.from_numpy(lengths.astype(self._dtype)),
            _log_probabilities(features, visits, at_reference, self._reference),
        )

    def parts(self, data: TrajectoryShard, rows: np.ndarray) -> list[np.ndarray]:
        """Return the pairs ``rows`` (B,) in one part: their scores take little memory."""
        return [rows]

    def forward(
        self, params: FlatParams, data: TrajectoryShard, rows: np.ndarray, *, need_grad: bool = True
    ) -> TrajectoryPass:
        """Evaluate the pairs ``rows`` (B,) of ``data`` at theta = ``params.data`` (d,)."""
        theta = params.data.numpy()
        actions = Actions.at(self._features, theta)
        both = (data.chosen, data.rejected)
        sides = tuple((side.features[rows], side.visits.batch(rows)) for side in both)
        chosen, rejected = (
            _log_probabilities(features, visits, actions, theta) for features, visits in sides
        )
        scores = pair_logps(self.reference, data, rows, chosen, rejected)
        return TrajectoryPass(scores, params, sides, actions)

    def export(self, x: Tensor, out: str | os.PathLike[str]) -> Path:
        """Write theta = ``x`` (d,), theta_ref and features (S, A, d) to the file ``out`` (.npz)."""
        theta = x.detach().cpu().numpy()
        arrays = {"theta": theta, "theta_ref": self._reference, "features": self._features}
        return write_npz(out, arrays)


def count_visits(
    rows: np.ndarray, states: np.ndarray, num_rows: int, num_states: int, dtype: np.dtype
) -> FeatureDifferences:
    """Count how often each of ``num_rows`` trajectories visits each state, sparse.

    rows, states : (T,) trajectory and state of every step.
    """
    # Every trajectory gets at least one entry, a zero for one without steps: no row may be empty.
    entry = np.concatenate([rows * num_states + states, np.arange(num_rows) * num_states])
    once = np.concatenate([np.ones(len(rows)), np.zeros(num_rows)])
    places, inverse = np.unique(entry, return_inverse=True)
    counts = np.zeros(len(places))
    np.add.at(counts, inverse, once)
    owner, columns = np.divmod(places, num_states)
    starts = np.searchsorted(owner, np.arange(num_rows + 1)).astype(np.intp)
    return FeatureDifferences(starts, columns.astype(np.intp), counts.astype(dtype), num_states)


def _log_probabilities(
    features: np.ndarray, visits: FeatureDifferences, actions: Actions, theta: np.ndarray
) -> np.ndarray:
    """Return (B,) log pi(y|x), eq. (1); a row is summed alone, so its bits ignore the others."""
    return (features * theta).sum(axis=1) - visits.margins(actions.log_normaliser)
