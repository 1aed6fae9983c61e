"""Optimizers and learning-rate schedules for one flat parameter vector.

Each optimizer is a frozen choice of constants; what changes lives in an explicit state, which is
checkpointed as it is. Flat AdamW calls the fused kernel once for the whole vector.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from decdpo.params.support import descend


@dataclass
class OptimState:
    """What an optimizer remembers of one agent.

    first, second : (P,) moment estimates, or (0,) where the optimizer has none. steps : () float32,
    the number of steps taken, as the fused kernels want it.
    """

    first: Tensor
    second: Tensor
    steps: Tensor


class Optimizer(Protocol):
    """Turns a gradient into an update of the parameters."""

    @property
    def max_norm(self) -> float:
        """Largest Euclidean norm of a gradient; 0 is no clipping."""
        ...

    def init(self, x: Tensor) -> OptimState:
        """Return the state for parameters ``x`` (P,)."""
        ...

    def step(self, x: Tensor, state: OptimState, grad: Tensor, lr: float) -> None:
        """Update ``x`` (P,) in place; ``grad`` (P,) is scratch afterwards."""
        ...


def _empty(x: Tensor) -> Tensor:
    return x.new_zeros(0)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: v <- momentum v + g;  x <- x - lr v.

    With ``nesterov`` the update is g + momentum v (Sutskever et al. 2013). ``weight_decay`` adds
    weight_decay x to the gradient. ``max_norm`` clips the gradient's Euclidean norm; 0 is off.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    max_norm: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether a step is x <- x - lr g, and counted, and nothing more."""
        return not (self.momentum or self.weight_decay or self.max_norm)

    def init(self, x: Tensor) -> OptimState:
        """Return the state for parameters ``x`` (P,)."""
        velocity = torch.zeros_like(x) if self.momentum else _empty(x)
        return OptimState(velocity, _empty(x), torch.zeros((), device=x.device))

    def step(self, x: Tensor, state: OptimState, grad: Tensor, lr: float) -> None:
        """Update ``x`` (P,) in place; ``grad`` (P,) is scratch afterwards."""
        clip(grad, self.max_norm)
        if self.weight_decay:
            grad.add_(x, alpha=self.weight_decay)
        if self.momentum:
            state.first.mul_(self.momentum).add_(grad)
            if self.nesterov:
                grad.add_(state.first, alpha=self.momentum)
            else:
                grad = state.first
        descend(x, grad, lr)
        self.count(state)

    def count(self, state: OptimState) -> None:
        """Take note of one more step."""
        state.steps += 1


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), one fused call per step.

    ``max_norm`` clips the gradient's Euclidean norm before the moments see it; 0 is off.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 0.0

    def init(self, x: Tensor) -> OptimState:
        """Return the state for parameters ``x`` (P,)."""
        return OptimState(
            torch.zeros_like(x), torch.zeros_like(x), torch.zeros((), device=x.device)
        )

    def step(self, x: Tensor, state: OptimState, grad: Tensor, lr: float) -> None:
        """Update ``x`` (P,) in place; ``grad`` (P,) is scratch afterwards."""
        clip(grad, self.max_norm)
        adamw(
            [x],
            [grad],
            [state.first],
            [state.second],
            [],
            [state.steps],
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )
        # The fused kernel does not count its change, by which copies of ``x`` know of it.
        increment_version(x)


def clip(grad: Tensor, max_norm: float) -> None:
    """Scale ``grad`` (P,) in place so that its Euclidean norm is at most ``max_norm``; 0 is off."""
    if max_norm:
        norm = float(torch.linalg.vector_norm(grad))
        if norm > max_norm:
            grad.mul_(max_norm / norm)


LearningRate = Callable[[int], float]
"""Maps the global local-step number k = t E + h (0-based) to the step size eta_k."""


@dataclass(frozen=True)
class Constant:
    """eta_k = lr."""

    lr: float

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class Cosine:
    """eta_k falls from lr to floor * lr along half a cosine over ``total`` steps."""

    lr: float
    total: int
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        done = min(step / max(self.total, 1), 1.0)
        share = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * share


@dataclass(frozen=True)
class InverseSqrt:
    """eta_k = lr / sqrt(1 + k / scale)."""

    lr: float
    scale: float = 1.0

    def __call__(self, step: int) -> float:
        return self.lr / math.sqrt(1 + step / self.scale)


@dataclass(frozen=True)
class Warmup:
    """A linear rise from lr_0 / steps to the schedule ``then``, which starts after ``steps``."""

    steps: int
    then: LearningRate

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.then(0) * (step + 1) / self.steps
        return self.then(step - self.steps)
