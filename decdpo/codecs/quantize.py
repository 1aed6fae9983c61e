"""Eight or four bits for every value, rounded up or down by chance so that nothing is biased.

A code is the scale of every block (float32), then the levels: one byte each, or two in a byte, the
first of them in its low half.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from decdpo.codecs.base import require_finite, too_large
from decdpo.rng import Stream, generator

BLOCKS = {8: 1024, 4: 64}
"""Values that share a scale, by bits: 0.4% more bytes for eight bits, 12.5% for four."""

_TINY = float(torch.finfo(torch.float32).tiny)


class Quantize:
    """C(x) = s floor(x / s + u), u uniform on [0, 1), s = max |x| / L in each block of B values.

    L = 127 for eight bits, 7 for four. E C(x) = x up to float32's rounding of u, and a value misses
    by less than s, by s / 2 in the root of the mean square at most, the largest not at all. With
    max^2 <= ||block||^2 this gives delta = 1 - (B - 1) / (4 L^2), 0.984 for eight bits and 0.679
    for four. Stochastic quantisation in the manner of Alistarh et al., "QSGD", 2017, but scaled by
    the maximum. Blocks whose scale is below the normal numbers of float32 count as zero.

    size : M. dtype : of the values. bits : 8 or 4, ``ValueError`` otherwise. seed : of u.
    """

    def __init__(self, size: int, dtype: torch.dtype, bits: int, seed: int = 0) -> None:
        if bits not in BLOCKS:
            raise ValueError(f"{bits} bits: quantise to {' or '.join(map(str, BLOCKS))}")
        self.size = size
        self.dtype = dtype
        self.bits = bits
        self.seed = seed
        self.block = BLOCKS[bits]
        self.limit = 2 ** (bits - 1) - 1
        self.num_blocks = -(-size // self.block)
        self._work = torch.promote_types(dtype, torch.float32)
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def nbytes(self) -> int:
        """Bytes of a code; the last block is filled up with zeros."""
        return self.num_blocks * (4 + self.block * self.bits // 8)

    @property
    def delta(self) -> float:
        """The contraction constant."""
        return 1.0 - (self.block - 1) / (4 * self.limit**2)

    def encode(self, vector: Tensor, code: Tensor, round: int) -> None:
        """Write scales and levels of ``vector`` (M,) into ``code`` (nbytes,)."""
        room = self.num_blocks * self.block - self.size
        blocks = pad(vector, (0, room)).to(self._work).view(self.num_blocks, self.block)
        scales, packed = self._parts(code)
        torch.div(blocks.abs().amax(dim=1), self.limit, out=scales)
        if not bool(torch.isfinite(scales).all()):
            require_finite(vector)
            raise too_large("float32")
        scales.masked_fill_(scales < _TINY, 0.0)
        steps = scales.to(self._work).masked_fill(scales == 0, torch.inf)
        levels = (blocks / steps[:, None]).add_(self._noise(round, vector)).floor_()
        levels = levels.clamp_(-self.limit, self.limit).flatten().to(torch.int8)
        if self.bits == 8:
            packed.copy_(levels.view(torch.uint8))
        else:
            raised = (levels + 8).view(torch.uint8)
            torch.bitwise_or(raised[0::2], raised[1::2] << 4, out=packed)

    def add(self, code: Tensor, target: Tensor, round: int, alpha: float = 1.0) -> None:
        """target <- target + alpha C(x)."""
        scales, packed = self._parts(code)
        if self.bits == 8:
            levels = packed.view(torch.int8)
        else:
            levels = torch.stack([packed & 15, packed >> 4], dim=1).flatten().view(torch.int8) - 8
        values = levels.view(self.num_blocks, self.block).to(self._work)
        values.mul_(scales.to(self._work)[:, None])
        target.add_(values.flatten()[: self.size].to(self.dtype), alpha=alpha)

    def _noise(self, round: int, like: Tensor) -> Tensor:
        """Return u (num_blocks, B) of ``round``."""
        if self._drawn[0] != round or self._drawn[1].device != like.device:
            rng = generator(self.seed, Stream.CODEC, round=round)
            drawn = torch.from_numpy(rng.random((self.num_blocks, self.block), dtype="float32"))
            self._drawn = (round, drawn.to(like.device))
        return self._drawn[1]

    def _parts(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of scales (num_blocks,) and packed levels."""
        scales, packed = code.split([4 * self.num_blocks, code.numel() - 4 * self.num_blocks])
        return scales.view(torch.float32), packed
