"""Letters and inboxes: what one agent hears in one round, whatever carried it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Letter:
    """One message from a neighbour.

    source : the neighbour's agent id. weight : w_ij of the receiving agent's row.
    age : rounds since it was sent; 0 in a synchronous exchange. body : (M,) the vector sent.
    """

    source: int
    weight: float
    age: int
    body: Tensor


@dataclass(frozen=True, slots=True)
class Inbox:
    """What agent i holds at the end of an exchange.

    sent : (M,) the snapshot m_i that agent i itself sent this round.
    letters : from the in-neighbours, in ascending source id, so that sums keep their bits.
    arrivals : slices that cover [0, M) in ascending order; the slice is yielded once every letter's
        body holds that part, so that mixing one part overlaps the arrival of the next. One pass
        only; a body may be read outside ``displace`` only after ``settle``.
    """

    sent: Tensor
    letters: tuple[Letter, ...]
    arrivals: Iterable[slice] = field(default=(slice(0, None),))

    def settle(self) -> None:
        """Wait until every letter has arrived in full."""
        for _ in self.arrivals:
            pass

    def displace(self, x: Tensor) -> None:
        """Add the displacement in place: x <- x + sum_j w_ij (m_j - m_i).

        x : (M,). One formula serves synchronous, overlapped, stale and compressed mixing. Letters
        are added in ascending source id, part by part as they arrive.
        """
        total = -sum(letter.weight for letter in self.letters)
        for part in self.arrivals:
            target = x[part]
            if self.letters:
                target.add_(self.sent[part], alpha=total)
            for letter in self.letters:
                target.add_(letter.body[part], alpha=letter.weight)
