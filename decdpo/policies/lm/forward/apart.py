"""Attention that is not compiled with the layers around it; this loads the compiler of torch."""

import torch
from torch import Tensor

from decdpo.policies.lm.forward.attention import Attend, Way
from decdpo.policies.lm.forward.packing import PackedPairs


class Apart:
    """Attends as ``attend`` does, uncompiled.

    Compiled, a row of another number of segments would be compiled anew.
    """

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    @torch.compiler.disable
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None
    ) -> Tensor:
        """Return (1, T, heads, D), see ``Attend``."""
        return self._attend(q, k, v, scaling, softcap)


def apart(way: Way) -> Way:
    """Return ``way``, but attending uncompiled."""

    def make(row: PackedPairs, dtype: torch.dtype, device: torch.device) -> Attend:
        return Apart(way(row, dtype, device))

    return make
