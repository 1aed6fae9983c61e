"""Dropout of what an adapter sees, drawn by address.

    y = W x + c + s B A (m x / (1 - p)),    m of 0 and 1, 0 with chance p

as PEFT's; W x sees all of x. The mask of one pair's tokens in one layer follows from the seed, the
agent, its local step, the pair and the layer alone. So a run has the same bits wherever its agents
live, however its batches are cut and whenever it was stopped, and what is computed again in the
backward pass is what was computed before. Both answers of a pair see one mask of their prompt.
Only the gradients of local steps have dropout: whatever is measured, and the reference, has none.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decdpo.policies.base import Draw
from decdpo.rng import Stream, generator

_STEPS = 1 << 16
"""A mask compares uniform integers below it with p, which is rounded to a multiple of 1 / 2^16."""
_ROWS = 40
"""Bits of the number of a pair in an address; those of the layer come above them."""


@dataclass
class _Now:
    """What masks are drawn for: an agent's step, and the pairs (rows, tokens) of a packed row."""

    draw: Draw
    pairs: list[tuple[int, int]]


class Dropout:
    """The masks of all adapters of a model; none until ``begin``.

    rate : p, 0 < p < 1. seed : of the run.
    """

    def __init__(self, rate: float, seed: int) -> None:
        self._below = min(max(round(rate * _STEPS), 1), _STEPS - 1)
        self._seed = seed
        self._now: _Now | None = None

    def begin(self, draw: Draw, rows: np.ndarray, sizes: np.ndarray) -> None:
        """Draw the masks of ``draw`` from now on.

        rows : (B,) the pairs that are scored, in their order in the packed row. sizes : (B,) their
        tokens in it.
        """
        self._now = _Now(draw, list(zip(rows.tolist(), sizes.tolist())))

    def end(self) -> None:
        """Drop nothing from now on."""
        self._now = None

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """Return ``x`` (1, T, k) with what the mask of a layer drops, scaled up; or as it is."""
        if self._now is None:
            return x
        keep = torch.cat([self._mask(row, (t, x.shape[-1]), layer, x.device)
                          for row, t in self._now.pairs])  # fmt: skip
        scale = _STEPS / (_STEPS - self._below)
        return torch.where(keep.view(x.shape), x * scale, x.new_zeros(()))

    def _mask(
        self, row: int, shape: tuple[int, int], layer: int, device: torch.device
    ) -> Tensor:
        """Return (t, k) booleans, whether a value of one pair's tokens is kept."""
        assert self._now is not None
        draw = self._now.draw
        rng = generator(
            self._seed, Stream.DROPOUT, draw.agent, draw.step, (layer << _ROWS) + row
        )
        if device.type == "cpu":
            drawn = rng.integers(0, _STEPS, size=shape, dtype=np.uint16)
            return torch.from_numpy(drawn >= self._below)
        # A GPU draws by itself what would take the host longer than the step.
        own = torch.Generator(device=device).manual_seed(int(rng.integers(0, 2**63)))
        found = torch.randint(_STEPS, shape, generator=own, device=device, dtype=torch.int32)
        return found >= self._below
