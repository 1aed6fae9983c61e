"""Outer momentum on E local steps: SlowMo, DiLoCo, and federated averaging with server momentum.

All agents begin round t at the common model x_t and take E local steps of an inner optimizer. The
average change is then treated like a gradient, by a second, outer optimizer with momentum beta and
step size alpha:

    Delta_t = x_t - sum_i p_i x_i,E                                                      (1)
    v_t+1 = beta v_t + Delta_t                                                           (2)
    x_t+1 = x_t - alpha v_t+1                        heavy ball,                         (3)
    x_t+1 = x_t - alpha (Delta_t + beta v_t+1)       Nesterov.                           (4)

(4) with AdamW inside is DiLoCo. (3) is SlowMo with its slow momentum u = v / eta, as long as the
inner step size eta does not change; where it does we follow DiLoCo, whose outer step does not
depend on eta. alpha = 1 with heavy ball on sampled participants is FedAvgM. alpha = 1, beta = 0 is
federated averaging.

Every agent computes the outer step itself, from the same bits, out of the average that a
``ServerExchange`` brings: the server needs no memory of its own. The inner optimizer's memory is
kept from round to round, as in DiLoCo. Everybody has to wait for the average: there is no overlap.

References: Wang et al., "SlowMo: improving communication-efficient distributed SGD with slow
momentum", 2020, Algorithm 1; Douillard et al., "DiLoCo: distributed low-communication training
of language models", 2023, Algorithm 1; Hsu, Qi and Brown, "Measuring the effects of non-identical
data distribution for federated visual classification", 2019, for FedAvgM.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part
from decdpo.messages import Inbox
from decdpo.params.optim import SGD, Optimizer, OptimState


@dataclass
class OuterState:
    """What an agent remembers.

    x : (P,) the parameters. optim : of the inner optimizer. anchor : (M,) the common model x_t at
    the beginning of the round. outer : of the outer optimizer, v in ``first`` (M,).
    """

    x: Tensor
    optim: OptimState
    anchor: Tensor
    outer: OptimState


@dataclass(frozen=True)
class OuterMomentum(InParts[OuterState]):
    """Local steps with an outer optimizer.

    optimizer : takes the local steps. num_shared : M. outer : takes the outer steps (2) to (4).
    outer_lr : alpha.

    The loss of an agent keeps the state: all that are left hold the same anchor and momentum. What
    the lost one added to the momentum decays with beta.
    """

    needs: ClassVar[Needs] = Needs(
        meets="server",
        own_pace=True,
        plain_steps=True,
        in_parts=True,
        against_products="its server adds up A and B",
        on_loss="keeps",
    )

    optimizer: Optimizer
    num_shared: int
    outer: SGD
    outer_lr: float = 1.0

    def init(self, x: Tensor) -> OuterState:
        """Return the state of an agent that starts at ``x`` (P,), the same for all agents."""
        anchor = x[: self.num_shared].clone()
        return OuterState(x, self.optimizer.init(x), anchor, self.outer.init(anchor))

    def message_size(self, num_shared: int) -> int:
        """Return M: the shared parameters travel."""
        return num_shared

    def local_step(self, state: OuterState, grad: Tensor, lr: float) -> None:
        """x_i <- x_i - eta g_i, or the inner optimizer's version of it."""
        self.optimizer.step(state.x, state.optim, grad, lr)

    def message(self, state: OuterState) -> Tensor:
        """Return x_i,E, the shared part (M,)."""
        return state.x[: self.num_shared]

    def mix_part(self, state: OuterState, inbox: Inbox, part: Part) -> None:
        """Take the outer step from x_t along the average change, and begin the next round there."""
        here, memory = part.values, state.outer
        shared, anchor = state.x[here], state.anchor[here]
        torch.sub(anchor, self.average(shared, inbox), out=shared)
        outer = OptimState(memory.first[here], memory.second, memory.steps)
        self.outer.step(anchor, outer, shared, self.outer_lr)
        shared.copy_(anchor)

    def average(self, shared: Tensor, inbox: Inbox) -> Tensor:
        """Return the average of where the local steps have led, as the server has made it.

        shared : the same values of the agent itself, which may be overwritten.
        """
        inbox.settle()
        (message,) = inbox.messages
        return message.body

    def restart(self, state: OuterState, rounds: int, mean: Tensor | None) -> None:
        """Do nothing: all agents hold the same anchor and momentum."""
