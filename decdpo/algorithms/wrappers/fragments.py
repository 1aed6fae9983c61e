"""Fragments: one part of the vector travels in a round, the parts in turn.

The M shared parameters are cut into F parts of M / F values, up to one. In round t part k = t mod F
alone is sent and mixed, by the rule of the algorithm and the weights of the round; all others take
their local steps. With plain gossip, W_t for the matrix of round t and x^k for part k of a vector,

    x_i^k <- x_i^k + sum_j w_ij (m_j^k - m_i^k),    k = t mod F,                         (1)

and with outer momentum, by gossip or a server, part k has an anchor and a momentum of its own,
which take an outer step in every F-th round, along what E F local steps have changed. Every message
has M / F values, and so the most that travels at a time falls by F; so does what travels in all, as
each part is mixed F times more rarely. F = 1 is the algorithm itself.

The parts must be independent of each other: a rule that mixes value by value, with a memory of each
value that only its own mixing changes (``Needs.in_parts``). A part sees the weights of every F-th
round, which must connect all agents: where F and the period of a graph have a common factor, they
do not.

Reference: Douillard et al., "Streaming DiLoCo with overlapping communication: towards a distributed
free lunch", 2025, arXiv:2501.18512, of which this is the first of three ideas. Its fragments are
layers, in an order of their own; ours are equal parts of the flat vector. For gossip it is our
reading.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from decdpo.algorithms.base import Algorithm, Needs
from decdpo.algorithms.wrappers.within import extended
from decdpo.messages import Inbox


class InParts(Algorithm[Any], Protocol):
    """An algorithm that can mix a part of its vector; its messages are the shared parameters."""

    def mix_part(self, state: Any, inbox: Inbox, part: slice) -> None:
        """Fold what the neighbours sent of ``part`` into that part of the state, in place."""
        ...


@dataclass(frozen=True)
class Fragments:
    """The algorithm ``inner``, a part of whose vector travels in a round.

    num_shared : M. count : F, from 1 to M.

    The state is ``inner``'s with one more field, ``turn``: how many rounds have been mixed.

    The loss of an agent restarts the turn at the number of the round, so that one that is adopted
    sends the part that is due; the rest is as of ``inner``.
    """

    inner: InParts
    num_shared: int
    count: int

    @property
    def needs(self) -> Needs:
        """What ``inner`` needs, and that what is restarted is the turn as well."""
        needs = self.inner.needs
        return replace(
            needs,
            sends_model=False,
            on_loss="refuses" if needs.on_loss == "refuses" else "restarts",
        )

    def init(self, x: Tensor) -> Any:
        """Return the state of an agent that starts at ``x`` (P,)."""
        state = self.inner.init(x)
        return extended(state, "Fragments", turn=0)

    def message_size(self, num_shared: int) -> int:
        """Return the values of the largest part; a smaller one lacks one value."""
        return -(-num_shared // self.count)

    def local_step(self, state: Any, grad: Tensor, lr: float) -> None:
        """Take ``inner``'s local step, with all parts."""
        self.inner.local_step(state, grad, lr)

    def message(self, state: Any) -> Tensor:
        """Return the part that is due, and the value after it where that is a smaller one."""
        start = self._part(state).start
        return self.inner.message(state)[start : start + self.message_size(self.num_shared)]

    def mix(self, state: Any, inbox: Inbox) -> None:
        """Mix the part that is due as ``inner`` does."""
        part = self._part(state)
        if part.stop - part.start < self.message_size(self.num_shared):
            inbox = inbox.without_last(1)
        self.inner.mix_part(state, inbox, part)
        state.turn += 1

    def restart(self, state: Any, rounds: int, mean: Tensor | None) -> None:
        """Restart as ``inner`` does if it has to, at the part of round ``rounds``."""
        if self.inner.needs.on_loss == "restarts":
            self.inner.restart(state, rounds, mean)
        state.turn = rounds

    def _part(self, state: Any) -> slice:
        """Return which values are due. The last part is one of the largest."""
        k = state.turn % self.count
        ends = (k * self.num_shared // self.count, (k + 1) * self.num_shared // self.count)
        return slice(*ends)
