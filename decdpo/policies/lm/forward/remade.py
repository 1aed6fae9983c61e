"""What autograd keeps of a forward pass, less what is cheaply made again when it is asked for.

Of a layer's inside the larger half is results of pointwise operations on what is kept anyway,

    silu(g),    silu(g) * u,    x * r,    w * (x * r)

the gated product of the layer's second part and its two norms; and copies of values, such as the
keys repeated for every head of the queries, of which their maker says how (``remember``). Made
again in the backward pass, by the operation that made them of the same values, they have the same
bits and take no memory. It costs less than the time of a step varies, where recomputing whole
layers costs a third of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu


class Kept:
    """A tensor that is kept. version : how often it had been changed when it was kept."""

    def __init__(self, tensor: Tensor) -> None:
        # Detached, since the result of an operation that keeps it would keep the operation.
        self.tensor = tensor.detach()
        self._version = tensor._version

    def get(self) -> Tensor:
        """Return the tensor. Raises ``RuntimeError`` if its values were changed in place."""
        if self.tensor._version != self._version:
            raise RuntimeError("what the backward pass needs was changed in place")
        return self.tensor


class Remade:
    """A tensor that is made again. make : makes it, or its base. sources : kept for that alone."""

    def __init__(
        self, tensor: Tensor, make: Callable[[], Tensor], sources: tuple[Kept, ...] = ()
    ) -> None:
        self._make, self.sources = make, sources
        self._view = tensor.size(), tensor.stride(), tensor.storage_offset()

    def get(self) -> Tensor:
        """Return the tensor, of new memory."""
        return self._make().as_strided(*self._view)


class Recipe:
    """How a tensor is made of others. make : of ``sources``, with the layout it had."""

    def __init__(self, make: Callable[..., Tensor], sources: tuple[Tensor, ...]) -> None:
        self._make, self.sources = make, tuple(map(Kept, sources))

    def __call__(self) -> Tensor:
        """Make it again."""
        return self._make(*(source.get() for source in self.sources))


_REMEMBERS = ContextVar("decdpo_remembers", default=False)
_RECIPE = "decdpo_recipe"


def remember(tensor: Tensor, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """Return ``tensor``, of which ``remade`` need not be kept what ``make`` makes of ``sources``.

    The sources are kept instead: they should be kept anyway, or smaller.
    """
    if _REMEMBERS.get():
        # A repeated tensor is a view of all of another, which is found from every part of it.
        base = tensor if tensor._base is None else tensor._base
        setattr(base, _RECIPE, Recipe(make, sources))
    return tensor


@contextmanager
def remembering() -> Iterator[None]:
    """Let ``remember`` take note in the block. Elsewhere what it would note takes memory itself."""
    before = _REMEMBERS.set(True)
    try:
        yield
    finally:
        _REMEMBERS.reset(before)


def _gelu(node: Any) -> Tensor:
    return gelu(node._saved_self, approximate=node._saved_approximate)


def _product(node: Any) -> Tensor:
    return torch.mul(node._saved_self, node._saved_other)


def _both(node: Any) -> bool:
    """Say whether a product has kept both of its factors."""
    return node._saved_self is not None and node._saved_other is not None


OPERATIONS: dict[str, Callable[[Any], Tensor]] = {
    "SiluBackward0": lambda node: silu(node._saved_self),
    "GeluBackward0": _gelu,
    "MulBackward0": _product,
}
"""How to do an operation again, by the name of its node in the graph."""


def spare(tensor: Tensor) -> Kept | Remade:
    """Return what is kept of a tensor that the backward pass needs."""
    base = tensor if tensor._base is None else tensor._base
    node = base.grad_fn
    if not base.is_contiguous():
        return Kept(tensor)
    recipe: Recipe | None = getattr(base, _RECIPE, None)
    if recipe is not None:
        return Remade(tensor, recipe, recipe.sources)
    make = None if node is None else OPERATIONS.get(node.name())
    if make is None or make is _product and not _both(node):
        return Kept(tensor)
    return Remade(tensor, partial(make, node))


@contextmanager
def remade() -> Iterator[None]:
    """Keep less of what is computed in the block; its backward pass may come after it."""
    with remembering(), torch.autograd.graph.saved_tensors_hooks(spare, lambda kept: kept.get()):
        yield
