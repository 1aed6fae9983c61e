"""Vectors in the memory of the host: a message is copied into its slot and mixed where it lies."""

from collections.abc import Callable

import torch
from torch import Tensor

from decdpo.comm.links.base import Claim
from decdpo.comm.links.slots import Format, Slot, aligned
from decdpo.comm.progress import Progress


class HostMemory:
    """The memory of this process's CPU; nothing in it ever waits."""

    uploads = False

    def __init__(self, format: Format) -> None:
        self.empty = torch.empty(0, dtype=format.dtype)
        self._parts = format.parts

    def allocate(self, nbytes: int) -> Tensor:
        """Return (nbytes,) uint8 that begins at a multiple of 64 bytes."""
        return aligned(nbytes)

    def fill(
        self, agent: int, slot: Slot, message: Tensor, post: Callable[[int], None], wanted: bool
    ) -> None:
        """Copy ``message`` into ``slot``, posting every chunk as soon as it lies there."""
        if len(self._parts) == 1:
            slot.body.copy_(message)
            post(0)
            return
        for chunk, part in enumerate(self._parts):
            slot.body[part].copy_(message[part])
            post(chunk)

    def repost(self, agent: int, slot: Slot, post: Callable[[int], None]) -> None:
        """Post all chunks of ``slot`` again."""
        for chunk in range(len(self._parts)):
            post(chunk)

    def sent(self, agent: int, slot: Slot) -> Tensor:
        """Return the slot's own vector."""
        return slot.body

    def received(self, source: int, claim: Claim) -> Tensor:
        """Return the vector where it arrives."""
        return claim.body

    def land(self, source: int, claim: Claim, chunk: int) -> None:
        """Do nothing: what has arrived can be mixed."""

    def turn(self) -> None:
        """Do nothing."""

    def release(self, claim: Claim) -> None:
        """Release ``claim``."""
        claim.release()

    def pump(self) -> None:
        """Do nothing."""

    def drain(self) -> None:
        """Do nothing."""

    def busy(self) -> bool:
        """Say no."""
        return False

    def join(self, progress: Progress) -> None:
        """Do nothing."""

    def close(self, progress: Progress | None) -> None:
        """Do nothing."""
