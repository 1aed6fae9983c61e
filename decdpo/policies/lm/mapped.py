"""Whether the weights of a frozen model are there once for all processes of a node.

Weights that are computed with in the type of their file are not read into memory: the file is
mapped, privately, and as nobody writes to them, all processes of a node that map it share its
pages. In another type each process has a copy of its own.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")
"""Where Linux says what is mapped in a process; other systems have no such file."""


def mapped_bytes(tensors: Iterable[Tensor]) -> int | None:
    """Return how many bytes of ``tensors`` lie in files of safetensors that are mapped.

    None where the system does not say.
    """
    try:
        lines = MAPS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    ranges = [
        tuple(int(end, 16) for end in line.split(maxsplit=1)[0].split("-"))
        for line in lines
        if line.endswith(".safetensors")
    ]
    return sum(
        tensor.nbytes
        for tensor in tensors
        if any(lo <= tensor.data_ptr() < hi for lo, hi in ranges)
    )


def sharing(tensors: Iterable[Tensor], dtype: str) -> tuple[str, ...]:
    """Return a note on who shares the frozen weights ``tensors``, computed with as ``dtype``."""
    frozen = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    whole, mapped = sum(tensor.nbytes for tensor in frozen), mapped_bytes(frozen)
    if mapped is None or not whole:
        return ()
    # What is not in the file, such as frozen factors of adapters, is small beside the rest.
    if 2 * mapped > whole:
        return (f"the frozen model, {mapped / 1e6:.1f} MB, is shared by the processes of a node",)
    return (
        f"every process has a copy of the frozen model, {whole / 1e6:.1f} MB, for its file is not "
        f"of policy.dtype = {dtype!r}; in a file of that type it would be shared",
    )
