"""The shared window: the ranks of one node read each other's send slots where they lie.

The writer copies its message into a slot and then sets the slot's stamp, one aligned word: the
round and how many chunks are there. The reader polls that word, reads the payload where it lies,
and writes the round into its word of the slot's receipts when its inbox ends. The writer reuses the
slot once all readers of its last message have done so. ``Win.Sync`` orders payload and words. An
agent sends once a round and its slot is the round's parity, so a reader knows where to look.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.comm.links.message import MessageEdge, MessageLinks, MessageRoute
from decdpo.comm.links.slots import HEADER, STAMP, Format, Slot
from decdpo.errors import EnvironmentFault

PAGE = 4096
SHARED_MEMORY = "/dev/shm"
_CHUNKS = 1 << 20
"""Stamps are round * 2**20 + chunks ready."""


class Segment:
    """One rank's part of the window: its agents' receipts, then two slots for each.

    memory : (nbytes,) uint8. agents : of that rank. num_readers : ranks on the node.
    """

    def __init__(
        self, memory: np.ndarray, format: Format, agents: Sequence[int], num_readers: int
    ) -> None:
        words = 2 * len(agents) * num_readers
        self.receipts = memory[: 8 * words].view(np.int64).reshape(len(agents), 2, num_readers)
        self.agents = tuple(agents)
        self._place = {agent: place for place, agent in enumerate(agents)}
        self._stride = _round_up(format.nbytes)
        self._nbytes = format.nbytes
        self._payload: Tensor = torch.from_numpy(memory[_round_up(8 * words) :])

    @staticmethod
    def size(format: Format, num_agents: int, num_readers: int) -> int:
        """Return the bytes that a rank with ``num_agents`` agents contributes."""
        receipts = 16 * num_agents * num_readers
        return _round_up(receipts) + 2 * num_agents * _round_up(format.nbytes)

    def raw(self, agent: int, parity: int) -> Tensor:
        """Return the (nbytes,) bytes of a slot."""
        start = (2 * self._place[agent] + parity) * self._stride
        return self._payload[start : start + self._nbytes]

    def receipt(self, agent: int, parity: int) -> np.ndarray:
        """Return the (num_readers,) newest round of the slot that each reader has finished."""
        found: np.ndarray = self.receipts[self._place[agent], parity]
        return found


class Window:
    """The send slots of all ranks of a node, in one shared-memory window.

    win : an MPI window that every rank of the node allocated, in a passive epoch. segments : by
    node rank. me : this node rank. Made by ``mpi.node``; ``clear`` before use, then a barrier.
    """

    def __init__(self, win: Any, segments: Sequence[Segment], me: int) -> None:
        self._win = win
        self._segments = list(segments)
        self.me = me
        self.sync = win.Sync

    def clear(self) -> None:
        """Mark this rank's own slots as empty."""
        mine = self._segments[self.me]
        mine.receipts[:] = -1
        for agent in mine.agents:
            for parity in range(2):
                mine.raw(agent, parity).numpy()[:HEADER].view(np.int64)[STAMP] = -1
        self.sync()

    def slot(self, format: Format, node_rank: int, agent: int, parity: int) -> Slot:
        """Return a view of a slot of the rank ``node_rank``."""
        return Slot(format, self._segments[node_rank].raw(agent, parity))

    def receipt(self, node_rank: int, agent: int, parity: int) -> np.ndarray:
        """Return the receipts of a slot, one per node rank."""
        return self._segments[node_rank].receipt(agent, parity)

    def close(self) -> None:
        """Free the window; no view of it may be used any more. Collective."""
        self._segments = []
        self._win.Unlock_all()
        self._win.Free()


class WindowLinks:
    """Links to the ranks of this node through its window, and to others by messages.

    place : of each rank of this node in the window. far : the links to all other ranks.
    """

    def __init__(
        self, window: Window, format: Format, place: Mapping[int, int], far: MessageLinks
    ) -> None:
        self._window = window
        self._format = format
        self._place = place
        self._far = far

    def slot(self, agent: int, place: int) -> Slot:
        """Return a send slot in the window."""
        return self._window.slot(self._format, self._window.me, agent, place)

    def route(
        self, slot: Slot, agent: int, place: int, rank: int, listener: int
    ) -> "WindowRoute | MessageRoute":
        """Return the reading of ``slot`` by ``rank``, or its sends."""
        reader = self._place.get(rank)
        if reader is None:
            return self._far.route(slot, agent, place, rank, listener)
        return WindowRoute(self._window, slot, agent, place, reader, rank, listener)

    def edge(self, source: int, rank: int) -> "WindowEdge | MessageEdge":
        """Return the slots of ``source``, or the receives of what it sends."""
        writer = self._place.get(rank)
        if writer is None:
            return self._far.edge(source, rank)
        return WindowEdge(self._window, self._format, writer, source)


class WindowRoute:
    """The reading of one slot by one rank of this node.

    reader : its place in the window. rank : in the job. agent : one that listens there.
    """

    def __init__(
        self,
        window: Window,
        slot: Slot,
        source: int,
        place: int,
        reader: int,
        rank: int,
        agent: int,
    ) -> None:
        self.rank = rank
        self.agent = agent
        self._slot = slot
        self._sync = window.sync
        self._receipts = window.receipt(window.me, source, place)
        self._reader = reader

    def start(self, chunk: int) -> None:
        """Say that the slot holds all chunks up to ``chunk``; once is enough for all readers."""
        stamp = self._slot.round * _CHUNKS + chunk + 1
        if self._slot.words[STAMP] < stamp:
            self._sync()
            self._slot.words[STAMP] = stamp

    def done(self) -> bool:
        """Say whether the reader has finished with the slot's last message."""
        return bool(self._receipts[self._reader] >= self._slot.round)

    def in_flight(self) -> bool:
        """Say no: the library reads nothing."""
        return False

    def close(self) -> None:
        """Do nothing: the window owns the memory."""


class WindowSlot(Slot):
    """A neighbour's slot, read where it lies."""

    def __init__(self, window: Window, format: Format, node_rank: int, agent: int, parity: int):
        super().__init__(format, window.slot(format, node_rank, agent, parity).raw)
        self._window = window
        self._source = agent
        self._receipt = window.receipt(node_rank, agent, parity)
        self._checked = False

    def claim(self, round: int) -> None:
        """Look for the message of ``round`` from now on."""
        self.round = round
        self._checked = False

    def arrived(self, chunk: int) -> bool:
        """Say whether ``chunk`` can be read. Checks the header."""
        if self.words[STAMP] <= self.round * _CHUNKS + chunk:
            return False
        self._window.sync()
        if not self._checked:
            self.check(self._source, self.round)
            self._checked = True
        return True

    def retire(self) -> None:
        """Do nothing: the writer waits until the slot is released."""

    def release(self) -> None:
        """Let the writer use the slot again."""
        self._window.sync()
        self._receipt[self._window.me] = self.round


class WindowEdge:
    """The messages of an agent on another rank of this node."""

    def __init__(self, window: Window, format: Format, node_rank: int, agent: int) -> None:
        self._slots = [WindowSlot(window, format, node_rank, agent, p) for p in range(2)]

    def claim(self, round: int) -> WindowSlot:
        """Return the slot in which the message of ``round`` will lie."""
        slot = self._slots[round % 2]
        slot.claim(round)
        return slot

    def close(self) -> None:
        """Do nothing: the window owns the memory."""


def no_room(needed: int) -> EnvironmentFault | None:
    """Return a fault if the node's shared memory cannot hold ``needed`` bytes."""
    try:
        stat = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    free = stat.f_bavail * stat.f_frsize
    if needed <= 0.8 * free:
        return None
    return EnvironmentFault(
        f"the messages of this node's agents take {needed} bytes of shared memory, "
        f"{SHARED_MEMORY} has {free} free",
        'set comm.transport = "p2p", or give the node (or container) more shared memory',
    )


def _round_up(nbytes: int) -> int:
    """Return ``nbytes`` rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE
