"""Sixteen bits for every value: the first half of a float32."""

from dataclasses import dataclass

import torch
from torch import Tensor

from decdpo.codecs.base import require_finite, too_large


@dataclass(frozen=True)
class Cast:
    """C(x) = x rounded to the nearest bfloat16, of 8 significant bits: delta = 1 - 2**-16.

    size : M. dtype : of the values.
    """

    size: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of a code."""
        return 2 * self.size

    @property
    def delta(self) -> float:
        """The contraction constant: no value moves by more than 2**-8 of itself."""
        return 1.0 - 2.0**-16

    def encode(self, vector: Tensor, code: Tensor, round: int) -> None:
        """Round ``vector`` (M,) into ``code`` (nbytes,)."""
        rounded = code.view(torch.bfloat16)
        rounded.copy_(vector)
        if not bool(torch.isfinite(rounded).all()):
            require_finite(vector)
            raise too_large("bfloat16")

    def add(self, code: Tensor, target: Tensor, round: int, alpha: float = 1.0) -> None:
        """target <- target + alpha C(x)."""
        target.add_(code.view(torch.bfloat16).to(self.dtype), alpha=alpha)
