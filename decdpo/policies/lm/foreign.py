"""What code of other projects raises, turned into one error that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from decdpo.errors import DecdpoError, PolicyError


def is_foreign(error: BaseException) -> bool:
    """Say whether ``error`` is a fault of foreign code or of what it was given.

    Ours, interrupts, signals and lack of memory are not. A panic of the Rust tokenizers derives
    from ``BaseException`` alone.
    """
    if not isinstance(error, Exception):
        return type(error).__name__.startswith("Panic")
    if isinstance(error, (DecdpoError, MemoryError, torch.OutOfMemoryError)):
        return False
    return "can't allocate memory" not in str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def foreign(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever foreign code raises inside the block into a ``PolicyError``."""
    try:
        yield
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise PolicyError(f"{what}: {first_line(error)}", remedy) from error
