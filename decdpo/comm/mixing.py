"""The mixing of vectors: sums of weighted messages, one fused pass per block, as they arrive."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from decdpo.messages import BLOCK, Message

WHOLE = (slice(0, None),)
"""The parts of a vector that is here."""


@dataclass(frozen=True, slots=True)
class Received:
    """The inbox of one agent in one round, whatever carried the messages.

    arrivals : slices that cover [0, M) in ascending order, cut at multiples of ``BLOCK``; a slice
        is yielded once every message's body holds that part, so that mixing one part overlaps the
        arrival of the next. One pass only.
    Other fields as of ``messages.Inbox``.
    """

    sent: Tensor
    messages: tuple[Message, ...]
    arrivals: Iterable[slice] = field(default=WHOLE)
    own: float = float("nan")
    agent: int = -1

    def settle(self) -> None:
        """Wait until every message has arrived in full."""
        for _ in self.arrivals:
            pass

    def settled(self) -> "Received":
        """Wait as ``settle`` does, and return the same inbox, whose bodies may be read."""
        self.settle()
        return replace(self, arrivals=WHOLE)

    def displace(self, x: Tensor, scale: float = 1.0) -> None:
        """Add the displacement in place: x <- x + scale sum_j w_ij (m_j - m_i).

        x : (M,). Messages are added in ascending source id, block by block as they arrive, so the
        result has the same bits whatever they came through.
        """
        if not self.messages:
            return self.settle()
        weights = [scale * message.weight for message in self.messages]
        self._add(x, (-sum(weights), *weights))

    def combine(self, x: Tensor) -> None:
        """Exchange what was sent for what is received: x <- x - m_i + w_ii m_i + sum_j w_ij m_j.

        x : (M,). The same as ``displace`` where the row sums to one, and right where it does not.
        """
        if not self.messages and self.own == 1.0:
            return self.settle()
        self._add(x, (self.own - 1.0, *(message.weight for message in self.messages)))

    def average(self, out: Tensor) -> None:
        """Write the average of what was sent and received: out <- w_ii m_i + sum_j w_ij m_j.

        out : (M,). Terms are added in ascending id, the agent's own among them.
        """
        place = bisect_left(self.messages, self.agent, key=lambda message: message.source)
        weights = [message.weight for message in self.messages]
        bodies = [message.body for message in self.messages]
        weights.insert(place, self.own)
        bodies.insert(place, self.sent)
        weighted_sum(out, weights, bodies, self.arrivals)

    def without_last(self, count: int) -> "Received":
        """Return the same inbox of vectors (M - count,), which lack the last ``count`` values."""
        shorter = tuple(replace(m, body=m.body[:-count]) for m in self.messages)
        return replace(self, sent=self.sent[:-count], messages=shorter)

    def _add(self, x: Tensor, weights: Sequence[float]) -> None:
        """Add weights_0 m_i + sum_j weights_j m_j to ``x``."""
        vectors = (self.sent, *[message.body for message in self.messages])
        add_weighted(x, weights, vectors, self.arrivals)


def add_weighted(
    x: Tensor, weights: Sequence[float], vectors: Sequence[Tensor], arrivals: Iterable[slice]
) -> None:
    """Add sum_k weights_k vectors_k to ``x`` (M,) in place, in order, part by part.

    The blocks of ``x`` stay in the cache while all terms are added; one of one block is added to
    when all ``arrivals`` are there.
    """
    if x.numel() <= BLOCK:
        for _ in arrivals:
            pass
        for weight, vector in zip(weights, vectors):
            x.add_(vector, alpha=weight)
        return
    # A GPU has no cache to spare and rounds every value alike: a part at a time is best there.
    block = BLOCK if x.device.type == "cpu" else x.numel()
    for part in arrivals:
        for target, *terms in zip(*(vector[part].split(block) for vector in (x, *vectors))):
            for weight, term in zip(weights, terms):
                target.add_(term, alpha=weight)


def weighted_sum(
    out: Tensor, weights: Sequence[float], vectors: Sequence[Tensor], arrivals: Iterable[slice]
) -> None:
    """Write sum_k weights_k vectors_k into ``out`` (M,), added in order, part by part."""
    for part in arrivals:
        blocks = zip(*(vector[part].split(BLOCK) for vector in (out, *vectors)))
        for target, first, *rest in blocks:
            torch.mul(first, weights[0], out=target)
            for weight, block in zip(weights[1:], rest):
                target.add_(block, alpha=weight)
