"""Trimmed mean: agents that leave out the most extreme values that they receive, value by value.

After its local steps agent i looks at each coordinate c of what its d neighbours sent, and follows
none of the b largest and the b smallest of them:

    x_i <- x_i - eta g_i                                       E local steps             (1)
    x_ic <- x_ic + sum_{j in K_ic} w_ij (x_jc - x_ic),                                   (2)
    K_ic : the neighbours without those of the b largest and b smallest x_jc.

What b dishonest neighbours say counts only where it lies between values of honest ones. An agent's
own value is never left out, and takes the share of those that are. A NaN counts as the largest
value. b = 0 would be DSGD, adapt then combine. The source averages what is kept with equal weights;
ours are those of the graph, which is our reading. The mean of the models is not kept.

References: Fang, Yang and Bajwa, "BRIDGE: Byzantine-resilient decentralized gradient descent",
2022, arXiv:1908.08098, BRIDGE-T; Yin, Chen, Ramchandran and Bartlett, "Byzantine-robust distributed
learning: towards optimal statistical rates", 2018, for the mean of a server.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from decdpo.algorithms.base import Needs
from decdpo.algorithms.gossip.dsgd import Dsgd, DsgdState
from decdpo.algorithms.parts import Part
from decdpo.messages import BLOCK, Inbox


@dataclass(frozen=True)
class TrimmedMean(Dsgd):
    """Trimmed mean, eqs. (1) and (2); ``optimizer`` takes the local steps. dishonest : b.

    The loss of an agent is refused: one that is left with 2 b neighbours or fewer would follow
    nobody.
    """

    needs: ClassVar[Needs] = Needs(
        against_products="it sorts values of A and B, whose coordinates turn with every cut",
        in_parts=True,
        on_loss="refuses",
    )

    dishonest: int = 1

    def mix_part(self, state: DsgdState, inbox: Inbox, part: Part) -> None:
        """x_i <- x_i + sum of w_ij (m_j - m_i) over the neighbours kept, value by value."""
        inbox.settle()
        x, messages = state.x[part.values], inbox.messages
        weights = x.new_tensor([message.weight for message in messages])
        vectors = (x, inbox.sent, *(message.body for message in messages))
        for target, sent, *bodies in zip(*(vector.split(BLOCK) for vector in vectors)):
            pulls, order = (torch.stack(bodies) - sent).sort(dim=0, stable=True)
            kept = slice(self.dishonest, len(bodies) - self.dishonest)
            for pull, who in zip(pulls[kept], order[kept]):
                target.addcmul_(pull, weights[who])
