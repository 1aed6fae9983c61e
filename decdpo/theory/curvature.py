"""Hessians of the objective: products with them, and their largest eigenvalue.

With per-pair losses l(log pi_w, log pi_l) of one batch, J the Jacobian of both log-probabilities
and D their cotangents, the Hessian of the summed loss is

    H v = J^T (l'' J v) + (sum_b D_b Hess log pi_b) v                                        (1)

exactly, where the policy offers a ``CurvedPass``; otherwise H v is a central difference of
gradients. What a loss takes as constant (a detached weight) is constant here in (1), too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from decdpo.errors import ConfigError
from decdpo.losses.base import PairLoss, PairScores, RunningLoss
from decdpo.params.flat import FlatParams
from decdpo.policies.curvature import CurvedPass
from decdpo.policies.encoded import EncodedShard
from decdpo.policies.objective import Objective
from decdpo.rng import Stream, generator

SMALL = 48
"""Up to this many parameters the whole Hessian is formed."""

ROUGH = 1e-2
"""Tolerance of the largest eigenvalue where a product is a difference of gradients."""

CHUNK = 16
"""Pairs that a policy without closed forms, a large model, evaluates at once."""


def constant_loss(objective: Objective) -> PairLoss:
    """Return the loss of ``objective``; ``ConfigError`` if it changes from batch to batch."""
    if isinstance(objective.loss, RunningLoss):
        raise ConfigError(
            "loss.kind = 'beta_dpo' follows the batches: it has no constants of its own",
            "measure with loss.kind = 'dpo', which it is at the mean gap",
        )
    return objective.loss


class PairLosses:
    """The summed loss of B pairs as a function of their log-probabilities.

    slopes : (2, B) its derivatives by the chosen and rejected log-probabilities; values : (B,).
    Pairs count by their weight, as in training.
    """

    def __init__(
        self, objective: Objective, scores: PairScores, data: EncodedShard, rows: np.ndarray
    ) -> None:
        with torch.enable_grad():
            self._inputs = tuple(
                t.detach().requires_grad_() for t in (scores.chosen, scores.rejected)
            )
            chosen, rejected = self._inputs
            values = constant_loss(objective)(replace(scores, chosen=chosen, rejected=rejected))
            if data.weight is not None:
                values = values * torch.as_tensor(data.weight[rows]).to(values)
            self._slopes = self._grad(values.sum(), create_graph=True)
        self.values = values.detach().double().numpy()
        self.slopes = torch.stack([slope.detach() for slope in self._slopes])

    def _grad(self, total: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        if not total.requires_grad:
            return tuple(torch.zeros_like(t) for t in self._inputs)
        found = torch.autograd.grad(
            total, self._inputs, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        return tuple(
            torch.zeros_like(t) if grad is None else grad for t, grad in zip(self._inputs, found)
        )

    def bend(self, along: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return l'' times a change (B,), (B,) of the log-probabilities."""
        with torch.enable_grad():
            total = sum(
                (slope * torch.from_numpy(change).to(slope)).sum()
                for slope, change in zip(self._slopes, along)
            )
            assert isinstance(total, Tensor)
            chosen, rejected = self._grad(total)
        return chosen.numpy(), rejected.numpy()


def agent_hessian(
    objective: Objective, params: FlatParams, data: EncodedShard, rows: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Return v -> H_i v, (P,) to (P,), for the mean loss over ``rows`` at ``params.data``."""
    forward = objective.policy.forward(params, data, rows[:1], need_grad=False)
    if not isinstance(forward, CurvedPass):
        return _differences(objective, params, data, rows)
    curved: Any = objective.policy.forward(params, data, rows, need_grad=False)
    losses = PairLosses(objective, curved.scores, data, rows)
    slopes = losses.slopes.numpy()

    def apply(vector: np.ndarray) -> np.ndarray:
        v = vector.astype(slopes.dtype)
        product = curved.back(*losses.bend(curved.along(v))) + curved.bend(slopes[0], slopes[1], v)
        return product.astype(np.float64) / len(rows)

    return apply


def mean_gradient(
    objective: Objective, params: FlatParams, data: EncodedShard, rows: np.ndarray, chunk: int
) -> tuple[float, np.ndarray]:
    """Return the mean loss over ``rows`` and its gradient (P,), float64.

    chunk : pairs evaluated at once, a matter of memory. Overwrites ``params.grad``.
    """
    loss, total = 0.0, np.zeros(params.layout.size)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        loss += float(objective.gradient(params, data, part).values[2])
        total += len(part) * params.grad.detach().cpu().double().numpy()
    return loss / len(rows), total / len(rows)


def _differences(
    objective: Objective, params: FlatParams, data: EncodedShard, rows: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    x = params.data
    # The cube root of the precision balances rounding against the third derivative.
    step = float(torch.finfo(x.dtype).eps) ** (1 / 3) * max(1.0, float(x.double().norm()))

    def apply(vector: np.ndarray) -> np.ndarray:
        norm = float(np.linalg.norm(vector))
        if norm == 0:
            return np.zeros_like(vector)
        shift = torch.from_numpy(vector / norm * step).to(x)
        ends = []
        for sign in (1.0, -1.0):
            moved = FlatParams(params.layout, (x + sign * shift).contiguous(), params.grad)
            ends.append(mean_gradient(objective, moved, data, rows, CHUNK)[1])
        return (ends[0] - ends[1]) * (norm / (2 * step))

    return apply


def largest_eigenvalue(
    apply: Callable[[np.ndarray], np.ndarray], size: int, tolerance: float = 1e-6
) -> float:
    """Return the largest modulus of an eigenvalue of a symmetric operator on (P,) vectors.

    apply : v -> H v, which may be collective: every process makes the same calls. At a tolerance
    of ``ROUGH`` or more a few of them must do.
    """
    if size <= SMALL:
        matrix = np.stack([apply(unit) for unit in np.eye(size)])
        return float(np.abs(np.linalg.eigvalsh((matrix + matrix.T) / 2)).max())
    operator = LinearOperator((size, size), matvec=lambda v: apply(v.ravel()), dtype=np.float64)
    start = apply(generator(0, Stream.INITIAL_MODEL, agent=size).standard_normal(size))
    if not start.any():
        # Without any curvature, which ARPACK does not take.
        return 0.0
    basis = 8 if tolerance >= ROUGH else None
    values = eigsh(
        operator, k=1, which="LM", v0=start, ncv=basis, tol=tolerance, return_eigenvectors=False
    )
    return float(np.abs(values).max())
