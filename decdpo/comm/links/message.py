"""Message passing: persistent nonblocking requests between two ranks.

A message is sent chunk by chunk under the tag of its source agent. MPI keeps the order of messages
of one sender and tag, so chunks need no number, and a receiver that has posted two slots in order
fills them in order: round t, then the next round in which the source sends to this rank.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor

from decdpo.comm.links.slots import Format, Slot
from decdpo.errors import PeerLost

Allocate = Callable[[int], Tensor]
"""Makes (nbytes,) uint8 for a slot, which begins at a multiple of 64 bytes."""


class MessageLinks:
    """Links by messages on ``comm``, which belongs to one exchange. allocate : memory of slots."""

    def __init__(self, comm: Any, format: Format, allocate: Allocate) -> None:
        self._comm = comm
        self._format = format
        self._allocate = allocate

    def slot(self, agent: int, place: int) -> Slot:
        """Return a new send slot."""
        return Slot(self._format, self._allocate(self._format.nbytes))

    def route(self, slot: Slot, agent: int, place: int, rank: int, listener: int) -> "MessageRoute":
        """Return the sends of ``slot`` to ``rank``."""
        return MessageRoute(self._comm, slot, agent, rank, listener)

    def edge(self, source: int, rank: int) -> "MessageEdge":
        """Return the receives of what ``source`` sends."""
        return MessageEdge(self._comm, self._format, source, rank, self._allocate)


class MessageRoute:
    """The sends of one slot to one rank, made once and started every round.

    comm : of the exchange. slot : whose bytes are sent. rank : the destination. agent : a listener
    there, for errors.
    """

    def __init__(self, comm: Any, slot: Slot, source: int, rank: int, agent: int) -> None:
        self.rank = rank
        self.agent = agent
        self.slot = slot
        self._requests = [comm.Send_init(piece, rank, source) for piece in slot.pieces()]
        self._pending = 0

    def start(self, chunk: int) -> None:
        """Send ``chunk``; chunks are started in order."""
        self._requests[chunk].Start()
        self._pending = chunk + 1

    def done(self) -> bool:
        """Say whether everything started has been taken; drives the library's progress."""
        while self._pending:
            if not self._requests[self._pending - 1].Test():
                return False
            self._pending -= 1
        return True

    def in_flight(self) -> bool:
        """Say whether a send has not been taken yet."""
        return not self.done()

    def close(self) -> None:
        """Free the requests; the sends must be done."""
        for request in self._requests:
            request.Free()
        self._requests = []


class ReceiveSlot(Slot):
    """A slot whose receives are posted; chunks arrive in order."""

    def __init__(
        self, comm: Any, format: Format, source: int, rank: int, allocate: Allocate
    ) -> None:
        super().__init__(format, allocate(format.nbytes))
        self._source = source
        self._requests = [comm.Recv_init(piece, rank, source) for piece in self.pieces()]
        self.release()

    def release(self) -> None:
        """Give the slot back, empty, to receive again."""
        self._arrived = 0
        for request in self._requests:
            request.Start()
        # Not before: another thread may ask, and a request that is not started tests as done.
        self._posted = True

    def retire(self) -> None:
        """Let nothing be here until the slot is given back."""
        self._posted = False

    def arrived(self, chunk: int) -> bool:
        """Say whether ``chunk`` is here; drives the library's progress. Checks the header."""
        if not self._posted:
            return False
        while self._arrived <= chunk:
            if not self._requests[self._arrived].Test():
                return False
            self._arrived += 1
            if self._arrived == 1:
                self.check(self._source, self.round)
        return True

    def close(self) -> None:
        """Cancel what is still posted and free the requests."""
        for request in self._requests[self._arrived :]:
            # What a lost process should have sent has come to its end already.
            with suppress(PeerLost):
                if not request.Test():
                    request.Cancel()
                    request.Wait()
        for request in self._requests:
            request.Free()
        self._requests = []


class MessageEdge:
    """The messages of one remote agent to this rank: a queue of two receive slots."""

    def __init__(
        self, comm: Any, format: Format, source: int, rank: int, allocate: Allocate
    ) -> None:
        self._slots = [ReceiveSlot(comm, format, source, rank, allocate) for _ in range(2)]

    def claim(self, round: int) -> ReceiveSlot:
        """Return the slot that the source's message of ``round`` fills; rounds ascend."""
        slot = self._slots.pop(0)
        self._slots.append(slot)
        slot.round = round
        return slot

    def close(self) -> None:
        """Cancel and free the receives."""
        for slot in self._slots:
            slot.close()
