"""Letters and inboxes: what one agent hears in one round, whatever carried it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

BLOCK = 1 << 17
"""Values mixed at a time: the target block stays in a core's cache while every letter is added
(0.6 ms instead of 0.84 at 1e6 floats, 12 instead of 14.5 at 1e7). Chunks of a message are multiples
of it, because the last few values of a vector operation may be rounded differently from the rest.
"""


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
    arrivals : slices that cover [0, M) in ascending order, cut at multiples of ``BLOCK``; a slice
        is yielded once every letter's body holds that part, so that mixing one part overlaps the
        arrival of the next. One pass only; a body may be read outside ``displace`` and ``combine``
        only after ``settle``.
    own : w_ii of agent i's row; not a number in an inbox that was made without it.
    """

    sent: Tensor
    letters: tuple[Letter, ...]
    arrivals: Iterable[slice] = field(default=(slice(0, None),))
    own: float = float("nan")

    def settle(self) -> None:
        """Wait until every letter has arrived in full."""
        for _ in self.arrivals:
            pass

    def displace(self, x: Tensor, scale: float = 1.0) -> None:
        """Add the displacement in place: x <- x + scale sum_j w_ij (m_j - m_i).

        x : (M,). One formula serves synchronous, overlapped, stale and compressed mixing. Letters
        are added in ascending source id, block by block as they arrive, so the result has the same
        bits whatever the letters came through.
        """
        if not self.letters:
            return self.settle()
        weights = [scale * letter.weight for letter in self.letters]
        self._add(x, -sum(weights), weights)

    def combine(self, x: Tensor) -> None:
        """Exchange what was sent for what is heard: x <- x - m_i + w_ii m_i + sum_j w_ij m_j.

        x : (M,). The same as ``displace`` where the row sums to one, and right where it does not,
        as with column-stochastic weights.
        """
        if not self.letters and self.own == 1.0:
            return self.settle()
        self._add(x, self.own - 1.0, [letter.weight for letter in self.letters])

    def _add(self, x: Tensor, own: float, others: Sequence[float]) -> None:
        """Add own m_i + sum_j others_j m_j to ``x``, part by part."""
        if x.numel() <= BLOCK:
            self.settle()
            x.add_(self.sent, alpha=own)
            for weight, letter in zip(others, self.letters):
                x.add_(letter.body, alpha=weight)
            return
        weights = (own, *others)
        vectors = (x, self.sent, *(letter.body for letter in self.letters))
        # A GPU has no cache to spare and rounds every value alike: a part at a time is best there.
        block = BLOCK if x.device.type == "cpu" else x.numel()
        for part in self.arrivals:
            for target, *terms in zip(*(vector[part].split(block) for vector in vectors)):
                for weight, term in zip(weights, terms):
                    target.add_(term, alpha=weight)
