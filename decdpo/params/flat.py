"""One agent's parameters as a single contiguous vector."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from decdpo.errors import PolicyError


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in the flat vector.

    names, shapes : of the parameters, in storage order; shared ones first, personal ones after.
    num_shared : how many leading values are shared, that is, travel to neighbours.
    dtype : of the values.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_shared: int
    dtype: torch.dtype = torch.float32

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each parameter, and the total size P as the last entry."""
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + prod(shape))
        return tuple(ends)

    @property
    def size(self) -> int:
        """P, the number of values."""
        return self.offsets[-1]

    @property
    def has_personal(self) -> bool:
        """Whether some parameters are personal: they never leave their agent."""
        return self.num_shared < self.size

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes, split and dtype: equal on agents that may exchange messages."""
        text = json.dumps([self.names, self.shapes, self.num_shared, str(self.dtype)])
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def of(cls, module: nn.Module, personal: Sequence[str] = ()) -> "Layout":
        """Lay out the trainable parameters of ``module``; those named ``personal`` go last.

        Raises ``PolicyError`` if there is nothing to train or the parameters differ in dtype.
        """
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise PolicyError("the model has no trainable parameter")
        dtypes = {p.dtype for _, p in named}
        if len(dtypes) > 1:
            kinds = ", ".join(sorted(map(str, dtypes)))
            raise PolicyError(f"the model mixes parameter types: {kinds}", "load it in one dtype")
        ordered = sorted(named, key=lambda item: item[0] in personal)
        return cls(
            names=tuple(n for n, _ in ordered),
            shapes=tuple(tuple(p.shape) for _, p in ordered),
            num_shared=sum(p.numel() for n, p in ordered if n not in personal),
            dtype=dtypes.pop(),
        )


class FlatParams:
    """The vector x_i of one agent with its gradient, contiguous and at a fixed address.

    data : (P,) the parameters; the shared prefix first, the personal suffix after it.
    grad : (P,) the gradient, accumulated in place; made, as zeros, when it is first asked for, so
        that a model that is only measured has none. Agents of one process may share the buffer.
    """

    def __init__(self, layout: Layout, data: Tensor, grad: Tensor | None = None) -> None:
        if data.shape != (layout.size,) or data.dtype != layout.dtype or not data.is_contiguous():
            raise ValueError(f"expected contiguous {layout.dtype} of shape ({layout.size},)")
        self.layout = layout
        self.data = data
        self._buffer = [] if grad is None else [grad]

    @property
    def grad(self) -> Tensor:
        if not self._buffer:
            self._buffer.append(torch.zeros_like(self.data))
        return self._buffer[0]

    @property
    def shared(self) -> Tensor:
        """(num_shared,) view of the shared prefix: all of the vector that ever travels."""
        return self.data[: self.layout.num_shared]

    def beside(self, data: Tensor) -> "FlatParams":
        """Return other parameters ``data`` (P,) with the same buffer of the gradient.

        It is for measuring: nobody keeps a gradient there between two rounds.
        """
        other = FlatParams(self.layout, data)
        other._buffer = self._buffer
        return other

    def with_shared(self, model: "FlatParams") -> "FlatParams":
        """Return the parameters with the shared part of ``model``, the personal part kept.

        It is the model by which an agent with personal parameters measures what all share; its
        gradient is that of ``model``. Without personal parameters it is ``model`` itself.
        """
        if not self.layout.has_personal:
            return model
        personal = self.data[self.layout.num_shared :]
        return model.beside(torch.cat((model.shared, personal)))

    def bind(self, module: nn.Module, need_grad: bool = True) -> None:
        """Make every parameter of ``module`` and its ``.grad`` a view into this vector.

        The values of ``module`` are replaced by the vector's. Zero ``grad`` itself afterwards;
        ``zero_grad(set_to_none=True)`` would drop the views. Unless ``need_grad``, the parameters
        have no ``.grad``.
        """
        parameters = dict(module.named_parameters())
        offsets = self.layout.offsets
        for name, shape, lo, hi in zip(self.layout.names, self.layout.shapes, offsets, offsets[1:]):
            parameter = parameters[name]
            parameter.data = self.data[lo:hi].view(shape)
            parameter.grad = self.grad[lo:hi].view(shape) if need_grad else None
            set_main_grad(parameter, parameter.grad)


def set_main_grad(parameter: Tensor, grad: Tensor | None) -> None:
    """Note that the gradient of ``parameter`` is to be added to ``grad``, of the same shape."""
    setattr(parameter, "main_grad", grad)


def main_grad(parameter: Tensor) -> Tensor | None:
    """Return what the gradient of ``parameter`` is to be added to, None if nobody has said."""
    return getattr(parameter, "main_grad", None)


def flatten(module: nn.Module, layout: Layout) -> Tensor:
    """Copy the parameters of ``module`` into a new (P,) vector in the order of ``layout``."""
    parameters = dict(module.named_parameters())
    return torch.cat([parameters[name].detach().reshape(-1) for name in layout.names])
