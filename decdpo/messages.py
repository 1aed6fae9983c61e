"""Messages and inboxes: what one agent receives in one round, as an algorithm sees it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

BLOCK = 1 << 17
"""Values mixed at a time: the target block stays in a core's cache while every message is added
(0.6 ms instead of 0.84 at 1e6 floats, 12 instead of 14.5 at 1e7). Chunks of a message are multiples
of it, because the last few values of a vector operation may be rounded differently from the rest.
"""


@dataclass(frozen=True, slots=True)
class Message:
    """One message from a neighbour.

    source : the neighbour's agent id. weight : w_ij of the receiving agent's row.
    age : rounds since it was sent; 0 in a synchronous exchange. body : (M,) the vector sent.
    """

    source: int
    weight: float
    age: int
    body: Tensor


class Inbox(Protocol):
    """What agent i holds at the end of an exchange; ``comm.mixing`` makes it.

    sent : (M,) the snapshot m_i that agent i itself sent this round.
    messages : from the in-neighbours, in ascending source id, so that sums keep their bits. A body
        may be read outside ``displace`` and ``combine`` only after ``settle``.
    own : w_ii of agent i's row; not a number in an inbox that was made without it.
    agent : i; -1 in an inbox that was made without it.
    """

    @property
    def sent(self) -> Tensor: ...

    @property
    def messages(self) -> tuple[Message, ...]: ...

    @property
    def arrivals(self) -> Iterable[slice]:
        """The parts of the vector, each once every message holds it; one pass only."""
        ...

    @property
    def own(self) -> float: ...

    @property
    def agent(self) -> int: ...

    def settle(self) -> None:
        """Wait until every message has arrived in full."""
        ...

    def settled(self) -> "Inbox":
        """Wait as ``settle`` does, and return the same inbox, whose bodies may be read."""
        ...

    def displace(self, x: Tensor, scale: float = 1.0) -> None:
        """Add the displacement in place: x <- x + scale sum_j w_ij (m_j - m_i).

        x : (M,). One formula serves synchronous, overlapped, stale and compressed mixing.
        """
        ...

    def combine(self, x: Tensor) -> None:
        """Exchange what was sent for what is received: x <- x - m_i + w_ii m_i + sum_j w_ij m_j.

        x : (M,). The same as ``displace`` where the row sums to one, and right where it does not,
        as with column-stochastic weights.
        """
        ...

    def average(self, out: Tensor) -> None:
        """Write the average of what was sent and received: out <- w_ii m_i + sum_j w_ij m_j.

        out : (M,). The agent's own term has its place by id, so that agents with the same weights
        of the same messages hold the same bits.
        """
        ...

    def without_last(self, count: int) -> "Inbox":
        """Return the same inbox of vectors (M - count,), which lack the last ``count`` values."""
        ...
