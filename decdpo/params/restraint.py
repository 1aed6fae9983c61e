"""Steps of their own for some parts of a vector, which are held near to where they began.

An optimizer moves the whole vector x by u. A part p of it that is restrained moves by

    p <- p + f u_p,                    f its share of the step                              (1)
    p <- p0 + (1 - eta f lambda) (p - p0),                                                  (2)

with p0 where it began, eta the step size and lambda its weight decay, decoupled from the gradient
as AdamW's is, so that moments know nothing of it. With eta f lambda >= 1 the part stays at p0: what
is restrained without end is not there. Near to p0 it is what a ridge is to a regression: a part
with more values than its agent has pairs would else learn those by heart.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from decdpo.params.optim import Optimizer, OptimState


@dataclass(frozen=True)
class Restraint:
    """How one part of the vector is restrained.

    place : where it lies. share : f >= 0. decay : lambda >= 0. start : p0, None for zeros.
    """

    place: slice
    share: float
    decay: float
    start: Tensor | None = None


@dataclass(frozen=True)
class Restrained:
    """The optimizer ``inner``, and after each of its steps eqs. (1) and (2) on some parts."""

    inner: Optimizer
    restraints: tuple[Restraint, ...]

    @property
    def max_norm(self) -> float:
        """Largest Euclidean norm of a gradient; 0 is no clipping."""
        return self.inner.max_norm

    def init(self, x: Tensor) -> OptimState:
        """Return the state for parameters ``x`` (P,): that of ``inner``."""
        return self.inner.init(x)

    def step(self, x: Tensor, state: OptimState, grad: Tensor, lr: float) -> None:
        """Update ``x`` (P,) in place; ``grad`` (P,) is scratch afterwards."""
        before = {r.place.start: x[r.place].clone() for r in self.restraints if r.share != 1}
        self.inner.step(x, state, grad, lr)
        for restraint in self.restraints:
            part = x[restraint.place]
            if restraint.share != 1:
                old = before[restraint.place.start]
                part.sub_(old).mul_(restraint.share).add_(old)
            pull = min(lr * restraint.share * restraint.decay, 1.0)
            if restraint.start is None:
                part.mul_(1 - pull)
            else:
                part.lerp_(restraint.start, pull)


def suffix(optimizer: Optimizer, first: int) -> Optimizer:
    """Return an optimizer of vectors as one of what they hold from ``first`` on."""
    if not isinstance(optimizer, Restrained):
        return optimizer
    moved = [
        replace(r, place=slice(r.place.start - first, r.place.stop - first))
        for r in optimizer.restraints
    ]
    return Restrained(optimizer.inner, tuple(moved))
