"""Values at random places, which the listener can draw for itself."""

import torch
from torch import Tensor

from decdpo.codecs.base import require_finite
from decdpo.rng import Stream, generator


class RandomK:
    """C(x) keeps one random value of each of k runs of M / k values: delta = 1 / ceil(M / k).

    Only values travel; the places follow from seed and round. One value of every run instead of k
    out of M: the same chance for each value, in O(k) work and memory, in ascending order.

    size : M. dtype : of the values. kept : k, from 1 to M; ``ValueError`` for another. seed : of
    the places.
    """

    def __init__(self, size: int, dtype: torch.dtype, kept: int, seed: int = 0) -> None:
        if not 1 <= kept <= size:
            raise ValueError(f"{kept} of {size} values kept")
        self.size = size
        self.dtype = dtype
        self.kept = kept
        self.seed = seed
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))

    @classmethod
    def of_ratio(cls, size: int, dtype: torch.dtype, ratio: float, seed: int = 0) -> "RandomK":
        """Keep ``ratio`` of the values, hence of the bytes; at least one value."""
        return cls(size, dtype, min(max(int(ratio * size), 1), size), seed)

    @property
    def nbytes(self) -> int:
        """Bytes of a code."""
        return self.kept * self.dtype.itemsize

    @property
    def delta(self) -> float:
        """The contraction constant."""
        return 1.0 / -(-self.size // self.kept)

    def encode(self, vector: Tensor, code: Tensor, round: int) -> None:
        """Write the values of ``vector`` (M,) at this round's places into ``code`` (nbytes,)."""
        require_finite(vector)
        torch.index_select(vector, 0, self.places(round, vector), out=code.view(self.dtype))

    def add(self, code: Tensor, target: Tensor, round: int, alpha: float = 1.0) -> None:
        """target <- target + alpha C(x)."""
        target.index_add_(0, self.places(round, target), code.view(self.dtype), alpha=alpha)

    def places(self, round: int, like: Tensor) -> Tensor:
        """Return the (k,) places of ``round``, ascending, on the device of ``like``."""
        if self._drawn[0] != round or self._drawn[1].device != like.device:
            ends = torch.arange(self.kept + 1) * self.size // self.kept
            rng = generator(self.seed, Stream.CODEC, round=round)
            chosen = rng.integers(ends[:-1].numpy(), ends[1:].numpy())
            self._drawn = (round, torch.from_numpy(chosen).to(like.device))
        return self._drawn[1]
