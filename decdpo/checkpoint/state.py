"""A state dataclass as named leaves: taken apart for saving, filled in place on resuming.

A state is a dataclass of tensors, numbers, strings, booleans, None, tuples and further such
dataclasses. Its leaves are named by dotted paths: ``x``, ``optim.first``, ``window.0``.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import CheckpointError

Scalar = bool | int | float | str | None
ALIGNMENT = 64

LARGE = 1 << 28
"""Bytes of the states of one process above which they are not copied for a checkpoint: waiting for
the disk costs such models less than the memory of a second state."""


@dataclass(frozen=True)
class Record:
    """One agent's state, taken apart.

    structure : the names of the state as text, ``DsgdState(x, optim=OptimState(first, steps))``.
    tensors : contiguous host tensors by path. scalars : everything else by path.
    """

    agent: int
    structure: str
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Scalar]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def leaves(state: Any) -> dict[str, Tensor | Scalar]:
    """Return every leaf of the dataclass ``state`` by its dotted path, in order of declaration.

    Raises ``TypeError`` for a field that a checkpoint cannot hold.
    """
    if not is_dataclass(state):
        raise TypeError(f"a state is a dataclass, not {type(state).__name__}")
    return dict(_walk(state, ""))


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor | Scalar]]:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (Tensor, bool, int, float, str)):
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise TypeError(f"state field {path}: {value} does not fit 64 bits")
        yield path, value
        return
    if not isinstance(value, tuple) and not is_dataclass(value):
        raise TypeError(f"state field {path}: a checkpoint cannot hold a {type(value).__name__}")
    prefix = f"{path}." if path else ""
    for name, child in _children(value):
        yield from _walk(child, prefix + name)


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, tuple):
        return [(str(index), child) for index, child in enumerate(value)]
    return [(field.name, getattr(value, field.name)) for field in fields(value)]


def tensor_bytes(state: Any) -> int:
    """Return the bytes of all tensors of the dataclass ``state``, which a checkpoint holds."""
    return sum(leaf.nbytes for leaf in leaves(state).values() if isinstance(leaf, Tensor))


def structure(value: Any) -> str:
    """Return the names of a state as text: two states of one structure can replace each other."""
    if isinstance(value, tuple):
        return f"({', '.join(structure(child) or '_' for child in value)})"
    if not is_dataclass(value):
        return ""
    parts = [(name, structure(child)) for name, child in _children(value)]
    inside = ", ".join(f"{name}={text}" if text else name for name, text in parts)
    return f"{type(value).__name__}({inside})"


def describe(tensor: Tensor) -> str:
    """Return dtype and shape in words: ``float32 (8, 3)``."""
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its package: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def raw_bytes(tensor: Tensor) -> np.ndarray:
    """Return the memory of a contiguous host tensor as a flat uint8 array that shares it."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def restore(
    state: Any,
    saved_structure: str,
    scalars: Mapping[str, Scalar],
    fill: Callable[[str, Tensor], None],
) -> None:
    """Fill a freshly initialised ``state`` with what was saved; its tensors keep their addresses.

    ``fill(path, tensor)`` copies the saved values into ``tensor``. Raises ``CheckpointError`` if
    the saved state has other fields.
    """
    present = structure(state)
    if saved_structure != present:
        raise CheckpointError(
            f"the saved state has other fields: saved {saved_structure}, now {present}",
            "resume with the algorithm and optimizer of the saved run",
        )
    _put(state, "", scalars, fill)


def _put(
    value: Any, path: str, scalars: Mapping[str, Scalar], fill: Callable[[str, Tensor], None]
) -> Any:
    """Return what shall stand at ``path``: the same object wherever it can be changed in place."""
    if isinstance(value, Tensor):
        fill(path, value.detach())
        return value
    prefix = f"{path}." if path else ""
    if isinstance(value, tuple):
        items = [_put(child, prefix + name, scalars, fill) for name, child in _children(value)]
        named = hasattr(value, "_fields")
        return type(value)(*items) if named else type(value)(items)
    if is_dataclass(value):
        for name, child in _children(value):
            new = _put(child, prefix + name, scalars, fill)
            if new is not child:
                # Also for frozen dataclasses: the owner holds this object and must see the change.
                object.__setattr__(value, name, new)
        return value
    if path not in scalars:
        raise CheckpointError(
            f"the saved state holds a tensor at {path}, now it is {value!r}",
            "resume with the algorithm and optimizer of the saved run",
        )
    return scalars[path]


def digest(record: Record) -> str:
    """Return the SHA-256 of a whole state: names, types, shapes and every bit of every value."""
    total = hashlib.sha256(record.structure.encode())
    for path in sorted(record.tensors):
        tensor = record.tensors[path]
        total.update(f"\n{path} {describe(tensor)}\n".encode())
        total.update(raw_bytes(tensor).data)
    total.update(json.dumps(dict(record.scalars), sort_keys=True).encode())
    return total.hexdigest()


def parameter_digest(x: Tensor) -> str:
    """Return the SHA-256 of a parameter vector's bytes as they lie in memory."""
    return hashlib.sha256(raw_bytes(x.detach().cpu().contiguous()).data).hexdigest()


class Snapshot:
    """Copies of states in one host buffer, made once and used for every checkpoint.

    in_place_above : bytes on the host above which states are not copied, but taken as they lie.

    copied : whether the states last taken are copies; others must be written before they change.
    """

    def __init__(self, in_place_above: int = LARGE) -> None:
        self._plan: list[tuple[int, str, torch.dtype, torch.Size]] = []
        self._copies: list[Tensor] = []
        self._in_place_above = in_place_above
        self.copied = True

    def take(self, states: Mapping[int, Any]) -> list[Record]:
        """Return the states of agents; valid until the next ``take``."""
        found = {agent: leaves(states[agent]) for agent in sorted(states)}
        tensors = {
            (agent, path): leaf.detach()
            for agent, named in found.items()
            for path, leaf in named.items()
            if isinstance(leaf, Tensor)
        }
        self.copied = self._must_copy(tensors)
        if self.copied:
            self._lay_out(tensors)
            copies = dict(zip(tensors, self._copies))
            for key, tensor in tensors.items():
                copies[key].copy_(tensor, non_blocking=True)
            for device in {t.device for t in tensors.values() if t.is_cuda}:
                torch.cuda.synchronize(device)
            tensors = copies
        return [
            Record(
                agent,
                structure(states[agent]),
                {path: tensors[agent, path] for path in named if (agent, path) in tensors},
                {path: leaf for path, leaf in named.items() if not isinstance(leaf, Tensor)},
            )
            for agent, named in found.items()
        ]

    def _must_copy(self, tensors: Mapping[tuple[int, str], Tensor]) -> bool:
        """Say whether to copy: what is small, and what must leave a GPU or be made contiguous."""
        if sum(tensor.nbytes for tensor in tensors.values()) <= self._in_place_above:
            return True
        return any(t.device.type != "cpu" or not t.is_contiguous() for t in tensors.values())

    def _lay_out(self, tensors: Mapping[tuple[int, str], Tensor]) -> None:
        plan = [(*key, tensor.dtype, tensor.shape) for key, tensor in tensors.items()]
        if plan == self._plan:
            return
        starts, end = [], 0
        for tensor in tensors.values():
            starts.append(end)
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        pinned = any(tensor.is_cuda for tensor in tensors.values())
        self._copies = []
        buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
        for start, tensor in zip(starts, tensors.values()):
            piece = buffer[start : start + tensor.nbytes]
            self._copies.append(piece.view(tensor.dtype).view(tensor.shape))
        self._plan = plan
