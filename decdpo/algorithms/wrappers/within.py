"""What wrappers share: a state with fields of its own, and the way to one wrapper within others."""

from dataclasses import fields, make_dataclass
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def extended(state: Any, name: str, **more: Any) -> Any:
    """Return the state of the algorithm within as that of the wrapper ``name``.

    more : the first values of the fields that it has besides.
    """
    known = {f.name: getattr(state, f.name) for f in fields(state)}
    types = tuple((field, type(value)) for field, value in more.items())
    kind: Any = type(state)
    return _extended(kind, name, types)(**known, **more)


def wrapper_of(algorithm: Any, kind: type[T]) -> T | None:
    """Return the wrapper of a kind that ``algorithm`` is, or has within; None without one."""
    while not isinstance(algorithm, kind):
        if not hasattr(algorithm, "inner"):
            return None
        algorithm = algorithm.inner
    return algorithm


@cache
def _extended(state: Any, name: str, types: tuple[tuple[str, type], ...]) -> Any:
    """Return the dataclass ``state`` with more fields, as a dataclass of its own."""
    return make_dataclass(f"{name}{state.__name__}", types, bases=(state,), kw_only=True)
