"""Gradient tracking: every agent steps along its estimate of the average gradient.

y_i tracks the mean of all g_j, so that a constant step size leads to the optimum of the mean
objective however unlike the agents are; DSGD with a constant step stops at a bias. In matrix form,
a row per agent, g_t the gradients at x_t, y_-1 = g_-1 = 0:

    y_t   = W y_t-1 + g_t - g_t-1                                                        (1)
    x_t+1 = W x_t - eta y_t                                                              (2)

That is ``overlap = true``: the messages of a round, y_t-1 and x_t, are known before its gradient,
so that the exchange hides behind it and nothing is stale. With ``overlap = false`` the tracker
adapts before it combines,

    y_t   = W (y_t-1 + g_t - g_t-1).                                                     (3)

(2) with (1) is DIGing; (2) with (3) is DSGT, whose own tracker y' has y = W y' and which reads
x_t+1 = W (x_t - eta y'_t), y'_t = W y'_t-1 + g_t - g_t-1.

When agents are lost the sum over those that are left, a set L, is not that of their gradients any
more: they have given y to the lost ones and got others' in return. After the round of the loss is
mixed, each one tracks its own gradient again,

    y_i <- g_i,     i in L,                                                              (4)

so that sum_L y_i = sum_L g_i, which (1) and (3) keep with the new weights.

Either way sum_i y_i = sum_i g_i, by doubly stochastic W, which may change from round to round and
need not be symmetric. One gradient per round: E = 1. The optimizer is given y_i in place of the
gradient: momentum follows it and clipping shortens it, and neither moves the fixed point, where all
y_i are 0. Twice the bytes of DSGD: a message is (y_i, x_i), and both lie side by side in one
buffer, so that it needs no concatenation. Personal parameters follow their own gradient. The
tracker sums differences of gradients, which needs float32 or better.

References: Nedic, Olshevsky and Shi, "Achieving geometric convergence for distributed optimization
over time-varying graphs", 2017, Algorithm 1 (DIGing); Pu and Nedic, "Distributed stochastic
gradient tracking methods", 2021, for stochastic gradients and DSGT.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part
from decdpo.messages import Inbox
from decdpo.params.optim import Optimizer, OptimState


@dataclass
class TrackingState:
    """What an agent remembers.

    x : (P,) the parameters, and y : (M,) the tracked gradient, which lies right before x in the
    same memory. grad : (P,) the last gradient g_i. lr : its step size. optim : of the optimizer.
    """

    x: Tensor
    y: Tensor
    grad: Tensor
    optim: OptimState
    lr: float = 0.0

    @property
    def both(self) -> Tensor:
        """(2 M,) y and the shared part of x, a view."""
        return self.y.as_strided((2 * self.y.numel(),), (1,))


@dataclass(frozen=True)
class GradientTracking(InParts[TrackingState]):
    """Gradient tracking, eqs. (1) to (3); ``optimizer`` steps along y. num_shared : M.

    The loss of an agent restarts the trackers: without the lost agent sum_i y_i is not sum_i g_i
    any more.
    """

    needs: ClassVar[Needs] = Needs(
        every_message=True,
        sends_model=True,
        in_parts=True,
        against_products="it tracks gradients by A and B, whose coordinates turn with every cut",
        on_loss="restarts",
    )

    optimizer: Optimizer
    num_shared: int

    def init(self, x: Tensor) -> TrackingState:
        """Return the state of an agent that starts at ``x`` (P,), which is copied."""
        buffer = x.new_zeros(self.num_shared + x.numel())
        y, own = buffer[: self.num_shared], buffer[self.num_shared :]
        own.copy_(x)
        return TrackingState(own, y, x.new_zeros(x.shape), self.optimizer.init(x))

    def message_size(self, num_shared: int) -> int:
        """Return 2 M: tracker and parameters travel."""
        return 2 * num_shared

    def local_step(self, state: TrackingState, grad: Tensor, lr: float) -> None:
        """y_i <- y_i + g_new - g_old; x waits for W x, in ``mix``."""
        shared = slice(0, self.num_shared)
        state.y.add_(grad[shared]).sub_(state.grad[shared])
        state.grad.copy_(grad)
        state.lr = lr

    def message(self, state: TrackingState) -> Tensor:
        """Return (y_i, x_i), (2 M,)."""
        return state.both

    def part_size(self, size: int) -> int:
        """Return how many values tell of ``size``."""
        return 2 * size

    def part_message(self, state: TrackingState, part: Part) -> Tensor:
        """Return (y_i, x_i) of ``part``, a copy."""
        return torch.cat([state.y[part.values], state.x[part.values]])

    def mix(self, state: TrackingState, inbox: Inbox) -> None:
        """Combine y and x with the neighbours', then x_i <- x_i - eta y_i."""
        inbox.displace(state.both)
        self._step(state)

    def mix_part(self, state: TrackingState, inbox: Inbox, part: Part) -> None:
        """Combine ``part`` of y and x; x_i <- x_i - eta y_i with all parts."""
        both = self.part_message(state, part)
        inbox.displace(both)
        y, x = both.chunk(2)
        state.y[part.values] = y
        state.x[part.values] = x
        self._step(state)

    def _step(self, state: TrackingState) -> None:
        direction = state.grad.clone()
        direction[: self.num_shared] = state.y
        self.optimizer.step(state.x, state.optim, direction, state.lr)

    def restart(self, state: TrackingState, rounds: int, mean: Tensor | None) -> None:
        """y_i <- g_i, eq. (4)."""
        state.y.copy_(state.grad[: self.num_shared])
