"""The way of a vector from a GPU to the wire and back: pinned host memory and a stream of its own.

``start`` snapshots the message on the device, in the order of the computation, and queues its
download chunk by chunk on a side stream; a chunk is sent once its download is done. What arrives is
uploaded chunk by chunk, and the computation waits on the device, not on the host, for the chunk it
mixes next. So the copies of one chunk overlap the transfer of the next and the mixing of the last.
"""

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from decdpo.comm.exchange import MpiExchange, Wiring, _Outbox
from decdpo.comm.slots import Format, Slot, aligned
from decdpo.comm.waiting import Patience
from decdpo.messages import Inbox


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


class Copies(Gpu):
    """Copies between a GPU and pinned memory, on a stream beside the computation's."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._side = torch.cuda.Stream(self.device)

    def follow(self) -> None:
        """Let the copies queued from now on wait for the computation queued so far."""
        self._side.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, target: Tensor, source: Tensor) -> Done:
        """Queue a copy and return its end."""
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            done: Done = self._side.record_event()
        return done

    def lead(self, done: Any) -> None:
        """Let the computation queued from now on wait for a copy."""
        torch.cuda.current_stream(self.device).wait_event(done)


G = TypeVar("G", bound=Gpu)


class DeviceExchange(MpiExchange, Generic[G]):
    """An exchange of vectors that live on a device.

    What must wait for work of the device is done in the order in which that was queued, as soon as
    somebody looks: this thread while it waits, or the progress thread.

    gpu : the device, and how slots are filled there.
    """

    def __init__(
        self,
        format: Format,
        wiring: Wiring,
        patience: Patience,
        gpu: G,
        on_round: Callable[[int], None] = lambda round: None,
    ) -> None:
        super().__init__(format, wiring, patience, on_round)
        self._gpu = gpu
        self._memory = gpu.allocate
        self._empty = self._empty.to(gpu.device)
        self._waiting: deque[tuple[Done, Callable[[], None]]] = deque()
        self._lock = threading.Lock()
        if wiring.progress is not None:
            # Before the probe of MPI, which moves what lies on the device.
            wiring.progress.probes.insert(0, gpu.enter)
            wiring.progress.probes.append(self.pump)

    def pump(self) -> None:
        """Do what the device is ready for."""
        with self._lock:
            while self._waiting and self._waiting[0][0].query():
                self._do_first()

    def finish(self, agent: int, round: int) -> Inbox:
        """Return what ``agent`` hears in ``round``; its parts arrive while they are used."""
        if self._wiring.progress is None:
            # The others may need what waits here, and this thread may not come again.
            self._drain()
        return super().finish(agent, round)

    def close(self) -> None:
        """Send what still waits for the device, then free everything. Collective."""
        try:
            self._settle()
        except RuntimeError:
            # A device that has failed once answers every question like that.
            self._waiting.clear()
        progress = self._wiring.progress
        if progress is not None and self.pump in progress.probes:
            progress.probes.remove(self.pump)
            progress.probes.remove(self._gpu.enter)
        super().close()

    def _after(self, done: Done, action: Callable[[], None]) -> None:
        """Do ``action`` once ``done``, which ends after all that earlier actions wait for."""
        with self._lock:
            self._waiting.append((done, action))

    def _turn(self, round: int) -> None:
        # What this round uses again must not be among what still waits.
        self._settle()
        super()._turn(round)

    def _rest(self) -> None:
        with self._lock:
            idle = not self._waiting
        if idle:
            super()._rest()

    def _wait(self, done: Callable[[], bool], agent: int, neighbour: int, round: int) -> None:
        def pumped() -> bool:
            self.pump()
            return done()

        super()._wait(pumped, agent, neighbour, round)

    def _settle(self) -> None:
        """End all that the device does for the last round's letters."""
        self._drain()

    def _drain(self) -> None:
        """Do all that waits for the device."""
        with self._lock:
            while self._waiting:
                self._waiting[0][0].synchronize()
                self._do_first()

    def _do_first(self) -> None:
        _, action = self._waiting[0]
        action()
        # Not before: what fails in the progress thread shall fail again in this one.
        self._waiting.popleft()


class StagedExchange(DeviceExchange[Copies]):
    """An exchange of vectors of a device through host memory."""

    def __init__(
        self,
        format: Format,
        wiring: Wiring,
        patience: Patience,
        gpu: Copies,
        on_round: Callable[[int], None] = lambda round: None,
    ) -> None:
        super().__init__(format, wiring, patience, gpu, on_round)
        self._snapshots: dict[int, Tensor] = {}
        self._downloads: dict[int, Done] = {}
        self._mirrors: dict[int, Tensor] = {}
        self._uploads: dict[int, list[Done]] = {}

    def _fill(
        self, outbox: _Outbox, slot: Slot, message: Tensor, post: Callable[[int], None]
    ) -> None:
        agent, copies = outbox.agent, self._gpu
        snapshot = self._snapshots.get(agent)
        if snapshot is None:
            snapshot = self._snapshots[agent] = self._new()
        if agent in self._downloads:
            copies.lead(self._downloads[agent])
        snapshot.copy_(message)
        if not outbox.active[slot.round % 2]:
            return
        copies.follow()
        for chunk, part in enumerate(self._format.parts):
            done = copies.copy(slot.body[part], snapshot[part])
            self._downloads[agent] = done
            self._after(done, partial(post, chunk))
        self.pump()

    def _spoken(self, agent: int, slot: Slot) -> Tensor:
        return self._snapshots[agent]

    def _heard(self, source: int) -> Tensor:
        mirror = self._mirrors.get(source)
        if mirror is None:
            mirror = self._mirrors[source] = self._new()
        return mirror

    def _landed(self, chunk: int, remote: tuple[int, ...]) -> None:
        part = self._format.parts[chunk]
        for source in remote:
            uploads = self._uploads.setdefault(source, [])
            if chunk == len(uploads):
                if chunk == 0:
                    # The mixing of the last round still reads the mirror.
                    self._gpu.follow()
                body = self._claims[source].body
                uploads.append(self._gpu.copy(self._heard(source)[part], body[part]))
            self._gpu.lead(uploads[chunk])

    def _settle(self) -> None:
        super()._settle()
        for uploads in self._uploads.values():
            for done in uploads:
                done.synchronize()
        self._uploads.clear()

    def _new(self) -> Tensor:
        return torch.empty(self._format.size, dtype=self._format.dtype, device=self._gpu.device)
