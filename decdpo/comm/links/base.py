"""What an exchange asks of the ways of messages, and of the memory that they lie in."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from decdpo.comm.links.slots import Slot
from decdpo.comm.progress import Progress


class Claim(Protocol):
    """A message of a remote agent, here or on its way, in a slot of its own until released.

    body : (M,) its vector. round : the round it is of.
    """

    body: Tensor
    round: int

    def arrived(self, chunk: int) -> bool:
        """Say whether ``chunk`` and those before it are here; never blocks."""
        ...

    def retire(self) -> None:
        """Take the slot out of use until it is released."""
        ...

    def release(self) -> None:
        """Let the slot hold another message."""
        ...


class Route(Protocol):
    """The way of one slot's messages to one rank. agent : one that listens there."""

    rank: int
    agent: int

    def start(self, chunk: int) -> None:
        """Send ``chunk``; chunks are started in order."""
        ...

    def done(self) -> bool:
        """Say whether the reader needs the slot no longer; never blocks."""
        ...

    def in_flight(self) -> bool:
        """Say whether the library still reads the slot."""
        ...

    def close(self) -> None:
        """Free what the route holds; nothing may be in flight."""
        ...


class Edge(Protocol):
    """The messages of one remote agent to this rank."""

    def claim(self, round: int) -> Claim:
        """Return the message of ``round``; rounds ascend, and two claims at most are held."""
        ...

    def close(self) -> None:
        """Give up what is still expected."""
        ...


class Links(Protocol):
    """Makes the ways of messages to and from other ranks."""

    def slot(self, agent: int, place: int) -> Slot:
        """Return the send slot number ``place`` of a local agent."""
        ...

    def route(self, slot: Slot, agent: int, place: int, rank: int, listener: int) -> Route:
        """Return the way of that slot to ``rank``, where ``listener`` lives."""
        ...

    def edge(self, source: int, rank: int) -> Edge:
        """Return the messages of the agent ``source`` on ``rank``."""
        ...


class Memory(Protocol):
    """Where the vectors of an exchange live, and how they come from there into slots and back.

    empty : (0,) a vector of that memory. uploads : whether what arrives must be brought there.
    """

    empty: Tensor
    uploads: bool

    def allocate(self, nbytes: int) -> Tensor:
        """Return (nbytes,) uint8 for a slot, which begins at a multiple of 64 bytes."""
        ...

    def fill(
        self, agent: int, slot: Slot, message: Tensor, post: Callable[[int], None], wanted: bool
    ) -> None:
        """Copy ``message`` into ``slot``, and post every chunk once it lies there.

        wanted : whether anybody elsewhere reads the slot.
        """
        ...

    def repost(self, agent: int, slot: Slot, post: Callable[[int], None]) -> None:
        """Post all chunks of what fills ``slot`` this round, once they lie there."""
        ...

    def sent(self, agent: int, slot: Slot) -> Tensor:
        """Return (M,) what ``agent`` sent this round, where it can be mixed."""
        ...

    def received(self, source: int, claim: Claim) -> Tensor:
        """Return (M,) where the remote message ``claim`` can be mixed, once it has landed."""
        ...

    def land(self, source: int, claim: Claim, chunk: int) -> None:
        """Bring a chunk that has arrived to where it can be mixed."""
        ...

    def turn(self) -> None:
        """Finish what the last round has left to do."""
        ...

    def release(self, claim: Claim) -> None:
        """Release ``claim`` once what the last round computes of it is done."""
        ...

    def pump(self) -> None:
        """Do what the device is ready for; never blocks."""
        ...

    def drain(self) -> None:
        """Do all that waits for the device."""
        ...

    def busy(self) -> bool:
        """Say whether anything waits for the device."""
        ...

    def join(self, progress: Progress) -> None:
        """Let the progress thread do what the device is ready for."""
        ...

    def close(self, progress: Progress | None) -> None:
        """Finish all, also after a failure of the device, and leave the progress thread."""
        ...
