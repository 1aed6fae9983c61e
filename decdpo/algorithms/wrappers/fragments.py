"""Fragments: one part of the vector travels in a round, the parts in turn.

The M shared parameters are cut into F parts of M / F values, up to one. In round t part k = t mod F
alone is sent and mixed, by the rule of the algorithm and the weights of the round; all others take
their local steps. With plain gossip, W_t for the matrix of round t and x^k for part k of a vector,

    x_i^k <- x_i^k + sum_j w_ij (m_j^k - m_i^k),    k = t mod F,                         (1)

and with outer momentum, by gossip or a server, part k has an anchor and a momentum of its own,
which take an outer step in every F-th round, along what E F local steps have changed. Every message
has M / F values, and so the most that travels at a time falls by F; so does what travels in all, as
each part is mixed F times more rarely. F = 1 is the algorithm itself.

A part is to the algorithm a vector of its own, which is mixed every F-th round: it has its own
trackers, weight of push-sum, public copies and distances by which pulls are clipped, and what these
conserve is conserved part by part (``decdpo.algorithms.parts`` is what an algorithm has for it; its
file says where a rule changes with F). Only the local steps are taken together, so that a limit on
the norm of a gradient is one on the whole. A part sees the weights of every F-th round, which must
connect all agents: where F and the period of a graph have a common factor, they do not.

Reference: Douillard et al., "Streaming DiLoCo with overlapping communication: towards a distributed
free lunch", 2025, arXiv:2501.18512, of which this is the first of three ideas. Its fragments are
layers, in an order of their own; ours are equal parts of the flat vector. For gossip it is our
reading.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part, part_of
from decdpo.algorithms.wrappers.within import extended
from decdpo.messages import Inbox


@dataclass(frozen=True)
class Fragments:
    """The algorithm ``inner``, a part of whose vector travels in a round.

    num_shared : M. count : F, from 1 to M.

    The state is ``inner``'s with one more field, ``turn``: how many rounds have been mixed.

    The loss of an agent restarts the turn at the number of the round, so that one that is adopted
    sends the part that is due; the rest is as of ``inner``.
    """

    inner: InParts[Any]
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
        state = self.inner.init_parts(x, self.count)
        return extended(state, "Fragments", turn=0)

    def message_size(self, num_shared: int) -> int:
        """Return the values of a message about the largest part."""
        return self.inner.part_size(-(-num_shared // self.count))

    def local_step(self, state: Any, grad: Tensor, lr: float) -> None:
        """Take ``inner``'s local step, with all parts."""
        self.inner.local_step(state, grad, lr)

    def message(self, state: Any) -> Tensor:
        """Return what travels of the part that is due, with zeros after it if it is smaller."""
        message = self.inner.part_message(state, self._part(state))
        missing = self.message_size(self.num_shared) - message.numel()
        return torch.cat([message, message.new_zeros(missing)]) if missing else message

    def mix(self, state: Any, inbox: Inbox) -> None:
        """Mix the part that is due as ``inner`` does."""
        part = self._part(state)
        missing = self.message_size(self.num_shared) - self.inner.part_size(part.size)
        if missing:
            inbox = inbox.without_last(missing)
        self.inner.mix_part(state, inbox, part)
        state.turn += 1

    def restart(self, state: Any, rounds: int, mean: Tensor | None) -> None:
        """Restart as ``inner`` does if it has to, at the part of round ``rounds``."""
        if self.inner.needs.on_loss == "restarts":
            self.inner.restart(state, rounds, mean)
        state.turn = rounds

    def _part(self, state: Any) -> Part:
        """Return which part is due."""
        return part_of(self.num_shared, state.turn % self.count, self.count)
