"""One agent's parameters as a single contiguous vector, and what becomes of each of them.

Every parameter of a module has a tag:

    shared      trained; it lies in the prefix of the vector, which alone travels, is mixed, counted
                and averaged
    personal    trained; it lies in the suffix, and never leaves its agent but into the agent's own
                part of a checkpoint
    frozen      not trained; it lies outside the vector, once in a process, whatever agents there
                are

Whoever adds parameters to a module names their tags, and ``Layout.tagged`` makes the vector of all:

    tags = dict.fromkeys(parameter_names(module), Tag.FROZEN)
    module.personal_head = nn.Linear(...)
    tags |= dict.fromkeys(("personal_head.weight", "personal_head.bias"), Tag.PERSONAL)
    layout = Layout.tagged(module, tags)

Messages, mixing, checkpoints, averages and measurements follow from ``layout.num_shared`` alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from decdpo.errors import PolicyError


class Tag(str, Enum):
    """What becomes of a parameter; see the module."""

    SHARED = "shared"
    PERSONAL = "personal"
    FROZEN = "frozen"


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

    def tag(self, name: str) -> Tag:
        """Return the tag of a parameter; what is not in the vector is frozen."""
        if name not in self._places:
            return Tag.FROZEN
        return Tag.SHARED if self._places[name].stop <= self.num_shared else Tag.PERSONAL

    def place(self, name: str) -> slice:
        """Return where in the vector a parameter lies. Raises ``KeyError`` for one that is not."""
        return self._places[name]

    @cached_property
    def _places(self) -> dict[str, slice]:
        return {n: slice(*ends) for n, *ends in zip(self.names, self.offsets, self.offsets[1:])}

    @classmethod
    def tagged(cls, module: nn.Module, tags: Mapping[str, Tag]) -> "Layout":
        """Lay out the parameters of ``module`` by their tags, and freeze those that are frozen.

        tags : by the name of a parameter; one that is not named is shared. Within the shared and
        the personal ones the order is the module's.

        Raises ``ValueError`` for a name that the module has not, else as ``of`` does.
        """
        known = parameter_names(module)
        unknown = sorted(set(tags) - set(known))
        if unknown:
            raise ValueError(f"the module has no parameter {unknown[0]!r}")
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(tags.get(name) is not Tag.FROZEN)
        return cls.of(module, [name for name in known if tags.get(name) is Tag.PERSONAL])

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


def parameter_names(module: nn.Module) -> list[str]:
    """Return the names of all parameters of ``module``, in its order; tied ones once."""
    return [name for name, _ in module.named_parameters()]


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
