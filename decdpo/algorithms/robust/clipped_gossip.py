"""Clipped gossip: agents that do not trust their neighbours, and move a bounded way towards each.

After its local steps agent i clips what would pull it to each neighbour, around itself:

    x_i <- x_i - eta g_i                                       E local steps             (1)
    x_i <- x_i + sum_j w_ij clip(x_j - x_i, tau_i),                                      (2)
    clip(z, tau) = min(1, tau / ||z||) z.

Of d neighbours b may send anything. The source chooses tau_i from the distances of the honest ones,
which nobody knows; our reading takes the distance of the (d - b)-th nearest neighbour, so that the
b farthest pull no harder than the farthest of the others, however far they claim to be. A vector
with a NaN or an infinity pulls not at all. With nobody clipped this is DSGD, adapt then combine.

As tau_i differs from agent to agent, the mean of the models is not kept.

Reference: He, Karimireddy and Jaggi, "Byzantine-robust decentralized learning via ClippedGossip",
2022, arXiv:2202.01545.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from decdpo.algorithms.base import Needs
from decdpo.algorithms.gossip.dsgd import Dsgd, DsgdState
from decdpo.algorithms.parts import Part
from decdpo.messages import Inbox


@dataclass(frozen=True)
class ClippedGossip(Dsgd):
    """Clipped gossip, eqs. (1) and (2); ``optimizer`` takes the local steps. dishonest : b.

    The loss of an agent is refused: one that is left with 2 b neighbours or fewer could not tell
    whom to follow.
    """

    needs: ClassVar[Needs] = Needs(
        against_products="it clips differences of A and B, whose coordinates turn with every cut",
        in_parts=True,
        on_loss="refuses",
    )

    dishonest: int = 1

    def mix_part(self, state: DsgdState, inbox: Inbox, part: Part) -> None:
        """x_i <- x_i + sum_j w_ij clip(m_j - m_i, tau_i)."""
        inbox.settle()
        x, messages = state.x[part.values], inbox.messages
        pull = torch.empty_like(x)
        lengths = []
        for message in messages:
            torch.sub(message.body, inbox.sent, out=pull)
            length = float(torch.linalg.vector_norm(pull))
            lengths.append(length if math.isfinite(length) else math.inf)
        radius = sorted(lengths)[-1 - self.dishonest]
        for message, length in zip(messages, lengths):
            if length < math.inf:
                torch.sub(message.body, inbox.sent, out=pull)
                share = min(1.0, radius / length) if length else 1.0
                x.add_(pull, alpha=message.weight * share)
