"""Vectors of a GPU handed straight to an MPI that is CUDA-aware: no copy to the host and back.

Slots lie in the GPU's memory, and a letter is mixed from the slot that it came into. MPI reads and
writes them without regard to what is queued on the GPU. So a chunk is sent once its snapshot is
taken, and a slot receives again once the computation that may read it has come to its end; the host
waits for neither. Headers travel apart, from host memory, for a header on the GPU could not be read
without waiting for the GPU.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from decdpo.comm.exchange import Claim, _Outbox
from decdpo.comm.slots import Slot
from decdpo.comm.staging import DeviceExchange, Done, Gpu


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


class DirectExchange(DeviceExchange[Stream]):
    """An exchange of vectors of a device from its memory; the format's headers travel apart."""

    _read: Done

    def _fill(
        self, outbox: _Outbox, slot: Slot, message: Tensor, post: Callable[[int], None]
    ) -> None:
        for chunk, part in enumerate(self._format.parts):
            done = self._gpu.copy(slot.body[part], message[part])
            self._after(done, partial(post, chunk))
        self.pump()

    def _turn(self, round: int) -> None:
        self._read = self._gpu.mark()
        super()._turn(round)

    def _give_back(self, claim: Claim) -> None:
        self._after(self._read, claim.release)
