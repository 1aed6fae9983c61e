"""Letters as messages: persistent nonblocking requests between two ranks.

A message is sent chunk by chunk under the tag of its source agent. MPI keeps the order of messages
of one sender and tag, so chunks need no number, and a receiver that has posted two slots in order
fills them in order: round t, then the next round in which the source speaks to this rank.
"""

from typing import Any

from decdpo.comm.slots import Format, Memory, Slot


class Route:
    """The sends of one slot to one rank, made once and started every round.

    comm : of the exchange. slot : whose bytes are sent. rank : the destination. agent : a listener
    there, for messages.
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

    def close(self) -> None:
        """Free the requests; the sends must be done."""
        for request in self._requests:
            request.Free()
        self._requests = []


class ReceiveSlot(Slot):
    """A slot whose receives are posted; chunks arrive in order."""

    def __init__(self, comm: Any, format: Format, source: int, rank: int, memory: Memory) -> None:
        super().__init__(format, memory(format.nbytes))
        self._source = source
        self._requests = [comm.Recv_init(piece, rank, source) for piece in self.pieces()]
        self._arrived = 0
        self.post()

    def post(self) -> None:
        """Make the slot ready for the next message."""
        self.round = -1
        self._arrived = 0
        for request in self._requests:
            request.Start()

    def arrived(self, chunk: int) -> bool:
        """Say whether ``chunk`` is here; drives the library's progress. Checks the header."""
        while self._arrived <= chunk:
            if not self._requests[self._arrived].Test():
                return False
            self._arrived += 1
            if self._arrived == 1:
                self.check(self._source, self.round)
        return True

    def release(self) -> None:
        """Give the slot back, empty, to receive again."""
        self.post()

    def close(self) -> None:
        """Cancel what is still posted and free the requests."""
        for request in self._requests[self._arrived :]:
            if not request.Test():
                request.Cancel()
                request.Wait()
        for request in self._requests:
            request.Free()
        self._requests = []


class Edge:
    """The letters of one remote agent to this rank: a queue of two receive slots."""

    def __init__(self, comm: Any, format: Format, source: int, rank: int, memory: Memory) -> None:
        self.rank = rank
        self._slots = [ReceiveSlot(comm, format, source, rank, memory) for _ in range(2)]

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
