"""Vectors of a GPU handed straight to an MPI that is CUDA-aware: no copy to the host and back.

Slots lie in the GPU's memory, and a message is mixed from the slot that it came into. MPI reads and
writes them without regard to what is queued on the GPU. So a chunk is sent once it is copied into
its slot, and a slot receives again once the computation that may read it has come to its end; the
host waits for neither. Headers travel apart, from host memory, for a header on the GPU could not be
read without waiting for the GPU.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from decdpo.comm.links.base import Claim
from decdpo.comm.links.deferred import Deferred, Done, Gpu
from decdpo.comm.links.slots import Format, Slot
from decdpo.comm.progress import Progress


class Stream(Gpu):
    """The computation's own stream of a GPU, on which all work runs in the order queued."""

    def allocate(self, nbytes: int) -> Tensor:
        """Return (nbytes,) uint8 on the GPU, which nothing queued so far uses any more."""
        memory = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        # The allocator gives memory away before the work that used it has been done.
        torch.cuda.current_stream(self.device).synchronize()
        return memory

    def copy(self, target: Tensor, source: Tensor) -> Done:
        """Queue a copy and return its end."""
        target.copy_(source)
        return self.mark()

    def mark(self) -> Done:
        """Return the end of all that is queued so far."""
        done: Done = torch.cuda.current_stream(self.device).record_event()
        return done


class DeviceMemory:
    """Vectors of a device whose messages lie there, too; the format's headers travel apart."""

    uploads = False

    def __init__(self, format: Format, gpu: Stream) -> None:
        self.gpu = gpu
        self.empty = torch.empty(0, dtype=format.dtype, device=gpu.device)
        self._parts = format.parts
        self._deferred = Deferred(gpu.enter)
        self.allocate = gpu.allocate
        self.pump = self._deferred.pump
        self.drain = self._deferred.drain
        self.busy = self._deferred.busy
        self._mixed: Done | None = None

    def fill(
        self, agent: int, slot: Slot, message: Tensor, post: Callable[[int], None], wanted: bool
    ) -> None:
        """Queue the copy of ``message`` into ``slot``, and post every chunk once that is done."""
        for chunk, part in enumerate(self._parts):
            done = self.gpu.copy(slot.body[part], message[part])
            self._deferred.after(done, partial(post, chunk))
        self.pump()

    def repost(self, agent: int, slot: Slot, post: Callable[[int], None]) -> None:
        """Post all chunks of ``slot``, once the copy into it is done."""
        done = self.gpu.mark()
        for chunk in range(len(self._parts)):
            self._deferred.after(done, partial(post, chunk))
        self.pump()

    def sent(self, agent: int, slot: Slot) -> Tensor:
        """Return the slot's own vector."""
        return slot.body

    def received(self, source: int, claim: Claim) -> Tensor:
        """Return the vector where it arrives."""
        return claim.body

    def land(self, source: int, claim: Claim, chunk: int) -> None:
        """Do nothing: what has arrived is on the device."""

    def turn(self) -> None:
        """Note the end of the last round's computation, and send what it has left."""
        self._mixed = self.gpu.mark()
        self.drain()

    def release(self, claim: Claim) -> None:
        """Release ``claim`` once the computation of the last round has come to its end."""
        claim.retire()
        if self._mixed is None:
            claim.release()
        else:
            self._deferred.after(self._mixed, claim.release)

    def join(self, progress: Progress) -> None:
        """Let the progress thread send what is copied, and give back what is mixed."""
        self._deferred.join(progress)

    def close(self, progress: Progress | None) -> None:
        """Send what still waits for the device."""
        try:
            self.drain()
        except RuntimeError:
            # A device that has failed once answers every question like that.
            pass
        self._deferred.close(progress)
