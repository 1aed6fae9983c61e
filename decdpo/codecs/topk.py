"""The largest values and where they stand.

A code is, in this order: for every run of 65,536 places how many of the kept values lie there
(int64), the kept values in ascending place (the vector's type), and the low 16 bits of each place.
Six bytes for a kept float32, where a place of its own would make it eight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decdpo.codecs.base import require_finite

RUN = 1 << 16


@dataclass(frozen=True)
class TopK:
    """C(x) keeps the k values of largest magnitude, the first ones of equals: delta = k / M.

    size : M. dtype : of the values. kept : k, from 1 to M. Deterministic. Raises ``ValueError`` for
    another k.
    """

    size: int
    dtype: torch.dtype
    kept: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.size:
            raise ValueError(f"{self.kept} of {self.size} values kept")

    @classmethod
    def of_ratio(cls, size: int, dtype: torch.dtype, ratio: float) -> "TopK":
        """Keep what fits into ``ratio`` times the bytes of the vector, at least one value."""
        room = int(ratio * size * dtype.itemsize) - 8 * _runs(size)
        return cls(size, dtype, min(max(room // (dtype.itemsize + 2), 1), size))

    @property
    def nbytes(self) -> int:
        """Bytes of a code."""
        return 8 * _runs(self.size) + self.kept * (self.dtype.itemsize + 2)

    @property
    def delta(self) -> float:
        """The contraction constant, reached where all magnitudes are equal."""
        return self.kept / self.size

    def encode(self, vector: Tensor, code: Tensor, round: int) -> None:
        """Write the largest values of ``vector`` (M,) into ``code`` (nbytes,)."""
        require_finite(vector)
        places = self._largest(vector)
        counts, values, low = self._parts(code)
        counts.copy_(torch.bincount(places // RUN, minlength=_runs(self.size)))
        torch.index_select(vector, 0, places, out=values)
        low.copy_(places % RUN - RUN // 2)

    def add(self, code: Tensor, target: Tensor, round: int, alpha: float = 1.0) -> None:
        """target <- target + alpha C(x)."""
        counts, values, low = self._parts(code)
        starts = torch.arange(_runs(self.size), device=code.device) * RUN + RUN // 2
        places = low + torch.repeat_interleave(starts, counts, output_size=self.kept)
        target.index_add_(0, places, values, alpha=alpha)

    def _largest(self, vector: Tensor) -> Tensor:
        """Return the k places of largest magnitude, ascending, whatever the library's ties."""
        magnitude = vector.abs()
        least = torch.topk(magnitude, self.kept, sorted=False).values.min()
        above = torch.nonzero(magnitude > least).flatten()
        equal = torch.nonzero(magnitude == least).flatten()[: self.kept - above.numel()]
        return torch.cat([above, equal]).sort().values

    def _parts(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of the three parts of a code."""
        runs, width = 8 * _runs(self.size), self.kept * self.dtype.itemsize
        counts, values, low = code.split([runs, width, 2 * self.kept])
        return counts.view(torch.int64), values.view(self.dtype), low.view(torch.int16)


def _runs(size: int) -> int:
    return -(-size // RUN)
