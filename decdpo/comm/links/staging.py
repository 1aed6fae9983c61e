"""The way of a vector from a GPU to the wire and back: pinned host memory and a stream of its own.

A message is copied on the device, in the order of the computation, and its download is queued chunk
by chunk on a side stream; a chunk is sent once its download is done. What arrives is uploaded chunk
by chunk, and the computation waits on the device, not on the host, for the chunk it mixes next. So
the copies of one chunk overlap the transfer of the next and the mixing of the last.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decdpo.comm.links.base import Claim
from decdpo.comm.links.deferred import Deferred, Done, Gpu
from decdpo.comm.links.slots import Format, Slot
from decdpo.comm.progress import Progress


class Copies(Gpu):
    """Copies between a GPU and pinned memory, on a stream beside the computation's."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._side = torch.cuda.Stream(self.device)

    def follow(self) -> None:
        """Let copies queued from now on wait for the computation queued so far."""
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


class PinnedMemory:
    """Vectors of a device, whose messages lie in pinned memory of the host.

    gpu : the device, and how it copies.
    """

    uploads = True

    def __init__(self, format: Format, gpu: Copies) -> None:
        self.gpu = gpu
        self.empty = torch.empty(0, dtype=format.dtype, device=gpu.device)
        self._format = format
        self._deferred = Deferred(gpu.enter)
        self.allocate = gpu.allocate
        self.pump = self._deferred.pump
        self.drain = self._deferred.drain
        self.busy = self._deferred.busy
        self._snapshots: dict[int, Tensor] = {}
        self._downloads: dict[int, Done] = {}
        self._filled: dict[int, int] = {}
        self._mirrors: dict[int, Tensor] = {}
        self._uploads: dict[int, list[Done]] = {}

    def fill(
        self, agent: int, slot: Slot, message: Tensor, post: Callable[[int], None], wanted: bool
    ) -> None:
        """Copy ``message`` on the device, and queue its download into ``slot`` if it is wanted."""
        snapshot = self._snapshots.get(agent)
        if snapshot is None:
            snapshot = self._snapshots[agent] = self._new()
        if agent in self._downloads:
            self.gpu.lead(self._downloads[agent])
        snapshot.copy_(message)
        if wanted:
            self._download(agent, slot, post)

    def repost(self, agent: int, slot: Slot, post: Callable[[int], None]) -> None:
        """Post all chunks of ``slot`` once they are downloaded, which they may be already."""
        if self._filled.get(agent) != slot.round:
            self._download(agent, slot, post)
            return
        for chunk in range(len(self._format.parts)):
            self._deferred.after(self._downloads[agent], partial(post, chunk))
        self.pump()

    def sent(self, agent: int, slot: Slot) -> Tensor:
        """Return the copy on the device."""
        return self._snapshots[agent]

    def received(self, source: int, claim: Claim) -> Tensor:
        """Return the vector on the device that ``claim`` is uploaded to."""
        mirror = self._mirrors.get(source)
        if mirror is None:
            mirror = self._mirrors[source] = self._new()
        return mirror

    def land(self, source: int, claim: Claim, chunk: int) -> None:
        """Queue the upload of a chunk, once, and let the computation wait for it."""
        uploads = self._uploads.setdefault(source, [])
        if chunk == len(uploads):
            if chunk == 0:
                # The mixing of the last round still reads the mirror.
                self.gpu.follow()
            part = self._format.parts[chunk]
            mirror = self.received(source, claim)
            uploads.append(self.gpu.copy(mirror[part], claim.body[part]))
        self.gpu.lead(uploads[chunk])

    def turn(self) -> None:
        """End all copies of the last round's messages."""
        self.drain()
        for uploads in self._uploads.values():
            for done in uploads:
                done.synchronize()
        self._uploads.clear()

    def release(self, claim: Claim) -> None:
        """Release ``claim``, whose upload has ended."""
        claim.release()

    def join(self, progress: Progress) -> None:
        """Let the progress thread send what is downloaded."""
        self._deferred.join(progress)

    def close(self, progress: Progress | None) -> None:
        """End all copies."""
        try:
            self.turn()
        except RuntimeError:
            # A device that has failed once answers every question like that.
            self._uploads.clear()
        self._deferred.close(progress)

    def _download(self, agent: int, slot: Slot, post: Callable[[int], None]) -> None:
        self.gpu.follow()
        snapshot = self._snapshots[agent]
        for chunk, part in enumerate(self._format.parts):
            done = self.gpu.copy(slot.body[part], snapshot[part])
            self._downloads[agent] = done
            self._deferred.after(done, partial(post, chunk))
        self._filled[agent] = slot.round
        self.pump()

    def _new(self) -> Tensor:
        return torch.empty(self._format.size, dtype=self._format.dtype, device=self.gpu.device)
