"""Quasi-global momentum: momentum that agents with unlike data can share without sending it.

A local momentum buffer points where the agent's own data point. Here the buffer is made from the
change of the agent's model across a whole round, mixing included, which is close to the average
agent's. With beta and mu in [0, 1), m_0 = 0, and one round of E local steps from x_t:

    x_h+1 = x_h - eta_h (g(x_h) + beta m_t),     h = 0 ... E-1                           (1)
    x_t+1 = sum_j w_ij x_j,E                                                             (2)
    d_t   = (x_t - x_t+1) / sum_h eta_h                                                  (3)
    m_t+1 = mu m_t + (1 - mu) d_t                                                        (4)

The source has E = 1 and beta = mu; the sum in (3) is our reading for E > 1. With
``overlap = true`` neighbours receive x_t in place of x_E, as in DSGD. For a single agent this is
quasi-hyperbolic momentum. The step (1) is plain: a second momentum, or Adam, has no place in it.
Any doubly stochastic W, of every schedule.

Reference: Lin, Karimireddy, Stich and Jaggi, "Quasi-global momentum: accelerating decentralized
deep learning on heterogeneous data", 2021, QG-DSGDm.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part, of_part, with_part
from decdpo.messages import Inbox
from decdpo.params.optim import SGD, OptimState


@dataclass
class QuasiGlobalState:
    """What an agent remembers.

    x : (P,) the parameters. momentum : (P,) m_t. before : (P,) x_t, the model at the beginning of
    the round. optim : of the plain step. path : sum_h eta_h of the round so far, of each part.
    """

    x: Tensor
    momentum: Tensor
    before: Tensor
    optim: OptimState
    path: float | Tensor = 0.0


@dataclass(frozen=True)
class QuasiGlobalMomentum(InParts[QuasiGlobalState]):
    """Quasi-global momentum, eqs. (1) to (4).

    optimizer : the plain step, for its clipping and weight decay. num_shared : M. beta, mu : the
    weight of the momentum in a step, and the share of it that a round keeps.

    The loss of an agent is refused: the round in which the weights change would enter the momentum
    as progress.

    Raises ``ValueError`` for an optimizer with momentum of its own.
    """

    needs: ClassVar[Needs] = Needs(
        momentum="beta",
        sends_model=True,
        in_parts=True,
        against_products="its momentum is of A and B, whose coordinates turn with every cut",
        on_loss="refuses",
    )

    optimizer: SGD
    num_shared: int
    beta: float = 0.9
    mu: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, SGD) or self.optimizer.momentum:
            raise ValueError("quasi-global momentum takes plain steps: SGD without momentum")

    def init(self, x: Tensor) -> QuasiGlobalState:
        """Return the state of an agent that starts at ``x`` (P,)."""
        return QuasiGlobalState(x, x.new_zeros(x.shape), x.clone(), self.optimizer.init(x))

    def init_parts(self, x: Tensor, count: int) -> QuasiGlobalState:
        """Return the state for parts, each with a path since its own last mixing."""
        state = self.init(x)
        state.path = torch.zeros(count, dtype=torch.float64)
        return state

    def message_size(self, num_shared: int) -> int:
        """Return M: the shared parameters travel, the momentum does not."""
        return num_shared

    def local_step(self, state: QuasiGlobalState, grad: Tensor, lr: float) -> None:
        """x_i <- x_i - eta (g_i + beta m_i)."""
        self.optimizer.step(state.x, state.optim, grad, lr)
        state.x.add_(state.momentum, alpha=-lr * self.beta)
        state.path += lr

    def message(self, state: QuasiGlobalState) -> Tensor:
        """Return x_i, the shared part (M,)."""
        return state.x[: self.num_shared]

    def mix_part(self, state: QuasiGlobalState, inbox: Inbox, part: Part) -> None:
        """Combine, and turn the change since the last time into momentum."""
        inbox.displace(state.x[part.values])
        here = part.with_personal
        x, before = state.x[here], state.before[here]
        if path := of_part(state.path, part):
            state.momentum[here].mul_(self.mu).add_(before.sub_(x), alpha=(1 - self.mu) / path)
        before.copy_(x)
        state.path = with_part(state.path, part, 0.0)

    def restart(self, state: QuasiGlobalState, rounds: int, mean: Tensor | None) -> None:
        """Do nothing: a loss is refused."""
