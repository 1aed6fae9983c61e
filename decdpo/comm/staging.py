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
from typing import Any, Protocol

import torch
from torch import Tensor

from decdpo.comm.exchange import MpiExchange, Wiring, _Outbox
from decdpo.comm.slots import Format, Slot
from decdpo.comm.waiting import Patience


class Done(Protocol):
    """The end of a copy that runs by itself."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Copies:
    """Copies between a GPU and pinned memory, on a stream beside the computation's.

    device : "cuda:k".
    """

    pinned = True

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
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


class StagedExchange(MpiExchange):
    """An exchange of vectors that live on a device. copies : how they get there and back."""

    def __init__(
        self,
        format: Format,
        wiring: Wiring,
        patience: Patience,
        copies: Copies,
        on_round: Callable[[int], None] = lambda round: None,
    ) -> None:
        super().__init__(format, wiring, patience, on_round)
        self._pinned = copies.pinned
        self._copies = copies
        self._empty = self._empty.to(copies.device)
        self._snapshots: dict[int, Tensor] = {}
        self._downloads: dict[int, Done] = {}
        self._mirrors: dict[int, Tensor] = {}
        self._uploads: dict[int, list[Done]] = {}
        self._waiting: deque[tuple[Done, Callable[[], None]]] = deque()
        # The progress thread pumps, too.
        self._lock = threading.Lock()
        if wiring.progress is not None:
            wiring.progress.probes.append(self.pump)

    def pump(self) -> None:
        """Send the chunks whose download is done."""
        with self._lock:
            while self._waiting and self._waiting[0][0].query():
                self._waiting.popleft()[1]()

    def close(self) -> None:
        """Send what is downloaded still, then free everything. Collective."""
        self._drain()
        progress = self._wiring.progress
        if progress is not None and self.pump in progress.probes:
            progress.probes.remove(self.pump)
        for uploads in self._uploads.values():
            for done in uploads:
                done.synchronize()
        super().close()

    def _fill(
        self, outbox: _Outbox, slot: Slot, message: Tensor, post: Callable[[int], None]
    ) -> None:
        agent, copies = outbox.agent, self._copies
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
            with self._lock:
                self._waiting.append((done, partial(post, chunk)))
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
                    self._copies.follow()
                body = self._claims[source].body
                uploads.append(self._copies.copy(self._heard(source)[part], body[part]))
            self._copies.lead(uploads[chunk])

    def _turn(self, round: int) -> None:
        for uploads in self._uploads.values():
            for done in uploads:
                done.synchronize()
        self._uploads.clear()
        super()._turn(round)

    def _reclaim(self, outbox: _Outbox, parity: int) -> None:
        self._drain()
        super()._reclaim(outbox, parity)

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

    def _drain(self) -> None:
        """Send every chunk, waiting for its download."""
        with self._lock:
            while self._waiting:
                self._waiting[0][0].synchronize()
                self._waiting.popleft()[1]()

    def _new(self) -> Tensor:
        return torch.empty(self._format.size, dtype=self._format.dtype, device=self._copies.device)
