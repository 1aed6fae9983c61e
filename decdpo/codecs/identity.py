"""The codec that changes nothing: every byte travels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from decdpo.codecs.base import require_finite


@dataclass(frozen=True)
class Identity:
    """C(x) = x, delta = 1; the yardstick of the others. size : M. dtype : of the values."""

    size: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of a code."""
        return self.size * self.dtype.itemsize

    @property
    def delta(self) -> float:
        """The contraction constant."""
        return 1.0

    def encode(self, vector: Tensor, code: Tensor, round: int) -> None:
        """Copy ``vector`` (M,) into ``code`` (nbytes,)."""
        require_finite(vector)
        code.view(self.dtype).copy_(vector)

    def add(self, code: Tensor, target: Tensor, round: int, alpha: float = 1.0) -> None:
        """target <- target + alpha x."""
        target.add_(code.view(self.dtype), alpha=alpha)
