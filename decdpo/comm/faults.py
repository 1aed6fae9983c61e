"""Errors that travel: a fault on one process becomes the same error on all."""

import json

from decdpo import errors
from decdpo.errors import DecdpoError, EnvironmentFault


def pack(fault: Exception | None) -> str:
    """Write a fault as a short text; the empty text stands for none."""
    if fault is None:
        return ""
    known = as_error(fault)
    kind = next(c.__name__ for c in type(known).__mro__ if getattr(errors, c.__name__, 0) is c)
    return json.dumps([kind, known.what, known.remedy])


def unpack(text: str) -> DecdpoError:
    """Make the error again; its attribute ``collective`` says that every process raises it."""
    kind, what, remedy = json.loads(text)
    error: DecdpoError = getattr(errors, kind)(what, remedy)
    error.collective = True
    return error


def as_error(fault: Exception) -> DecdpoError:
    """Return ``fault`` itself if it is one of ours, else an ``EnvironmentFault`` of its text."""
    if isinstance(fault, DecdpoError):
        return fault
    return EnvironmentFault(f"{type(fault).__name__}: {fault}")
