"""What must wait for work of a device, done in the order in which that work was queued."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from decdpo.comm.links.slots import aligned
from decdpo.comm.progress import Progress


class Done(Protocol):
    """The end of work that a device does by itself."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Gpu:
    """A GPU, as a process that computes on it sees it. device : "cuda:k"."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def enter(self) -> None:
        """Make this GPU the calling thread's own.

        A new thread has none: MPI cannot reach a GPU's memory from it, and its first question to a
        GPU would occupy memory on number 0. Choosing number 0 alone has no effect on a new thread;
        a question to its stream has.
        """
        torch.cuda.set_device(self.device)
        torch.cuda.current_stream(self.device).query()

    def allocate(self, nbytes: int) -> Tensor:
        """Return memory for a slot: (nbytes,) uint8 where MPI shall find the message."""
        return aligned(nbytes, pinned=True)


class Deferred:
    """Actions that wait for work of a device, for whoever looks next: a thread of this process.

    enter : makes the device the calling thread's own.
    """

    def __init__(self, enter: Callable[[], None]) -> None:
        self._enter = enter
        self._waiting: deque[tuple[Done, Callable[[], None]]] = deque()
        self._lock = threading.Lock()

    def after(self, done: Done, action: Callable[[], None]) -> None:
        """Do ``action`` once ``done``, and after all earlier actions."""
        with self._lock:
            self._waiting.append((done, action))

    def pump(self) -> None:
        """Do what the device is ready for."""
        with self._lock:
            while self._waiting and self._waiting[0][0].query():
                self._do_first()

    def drain(self) -> None:
        """Do all that waits for the device."""
        with self._lock:
            while self._waiting:
                self._waiting[0][0].synchronize()
                self._do_first()

    def busy(self) -> bool:
        """Say whether anything waits."""
        with self._lock:
            return bool(self._waiting)

    def join(self, progress: Progress) -> None:
        """Let the progress thread enter the device first, and pump."""
        # Before the probe of MPI, which moves what lies on the device.
        progress.probes.insert(0, self._enter)
        progress.probes.append(self.pump)

    def close(self, progress: Progress | None) -> None:
        """Forget what still waits, and leave the progress thread."""
        self._waiting.clear()
        if progress is not None and self.pump in progress.probes:
            progress.probes.remove(self.pump)
            progress.probes.remove(self._enter)

    def _do_first(self) -> None:
        _, action = self._waiting[0]
        action()
        # Not before: what fails in the progress thread shall fail again in this one.
        self._waiting.popleft()
