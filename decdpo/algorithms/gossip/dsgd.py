"""DecDPO: decentralized stochastic gradient descent on the DPO objective.

Agent i holds x_i and its gradient g_i on a batch of its own shard. With the mixing matrix W, one
round of E = 1 local step is, combining while adapting (the default, ``overlap = true``),

    x_i <- sum_j w_ij x_j - eta g_i(x_i)                                       (1)

and, adapting before combining (``overlap = false``),

    x_i <- sum_j w_ij (x_j - eta g_j(x_j)).                                    (2)

E local steps replace the gradient by the sum of E steps along the agent's own path. Both are the
same two moves here, a local step and a displacement of what was sent,

    x_i <- x_i - eta g_i,        x_i <- x_i + sum_j w_ij (m_j - m_i),           (3)

where m_j is x_j as it was when the message left: before the local steps in (1), after them in (2).

References: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", 2017,
Algorithm 1 (D-PSGD) for (1); Chen and Sayed, "Diffusion adaptation strategies for distributed
optimization and learning over networks", 2012, adapt-then-combine, for (2); Jiang, "Distributed
Direct Preference Optimization", 2026, for their use with DPO.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part
from decdpo.messages import Inbox
from decdpo.params.optim import Optimizer, OptimState


@dataclass
class DsgdState:
    """x : (P,) the parameters x_i. optim : what the local optimizer remembers."""

    x: Tensor
    optim: OptimState


@dataclass(frozen=True)
class Dsgd(InParts[DsgdState]):
    """Decentralized SGD, eq. (3); ``optimizer`` takes the local steps.

    The loss of an agent keeps the state: x_i alone is mixed, and any doubly stochastic weights
    average it.
    """

    needs: ClassVar[Needs] = Needs(
        pair_weights=True,
        own_pace=True,
        plain_steps=True,
        sends_model=True,
        in_parts=True,
        on_loss="keeps",
    )

    optimizer: Optimizer
    num_shared: int

    def init(self, x: Tensor) -> DsgdState:
        """Return the state of an agent that starts at ``x`` (P,)."""
        return DsgdState(x, self.optimizer.init(x))

    def message_size(self, num_shared: int) -> int:
        """Return M: the shared parameters travel."""
        return num_shared

    def local_step(self, state: DsgdState, grad: Tensor, lr: float) -> None:
        """x_i <- x_i - eta g_i, or the optimizer's version of it."""
        self.optimizer.step(state.x, state.optim, grad, lr)

    def message(self, state: DsgdState) -> Tensor:
        """Return m_i = x_i, the shared part (M,)."""
        return state.x[: self.num_shared]

    def mix_part(self, state: DsgdState, inbox: Inbox, part: Part) -> None:
        """x_i <- x_i + sum_j w_ij (m_j - m_i)."""
        inbox.displace(state.x[part.values])

    def restart(self, state: DsgdState, rounds: int, mean: Tensor | None) -> None:
        """Do nothing: nothing is conserved but the mean of the models."""
