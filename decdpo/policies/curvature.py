"""What a policy may offer beyond gradients: exact second derivatives of its log-probabilities."""

from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from decdpo.losses.base import PairScores


@runtime_checkable
class CurvedPass(Protocol):
    """A forward pass of B pairs whose derivatives are known in closed form, P parameters.

    With J_w, J_l the (B, P) Jacobians of the chosen and rejected log-probabilities, and H_b,w,
    H_b,l their (P, P) Hessians.
    """

    scores: PairScores

    def along(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return J_w v and J_l v, (B,) each, for a direction v (P,)."""
        ...

    def back(self, d_chosen: np.ndarray, d_rejected: np.ndarray) -> np.ndarray:
        """Return J_w^T d_w + J_l^T d_l, (P,), for cotangents (B,)."""
        ...

    def bend(
        self, d_chosen: np.ndarray, d_rejected: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return sum_b (d_w,b H_b,w + d_l,b H_b,l) v, (P,)."""
        ...

    def squared_norms(self, d_chosen: Tensor, d_rejected: Tensor) -> np.ndarray:
        """Return (B,) ||d_w,b J_w,b + d_l,b J_l,b||^2, one pair at a time; cotangents (B,)."""
        ...
