"""Errors that travel: a fault on one process becomes the same error on all."""

import json
from collections import Counter
from collections.abc import Sequence

from decdpo import errors
from decdpo.errors import ConfigError, DecdpoError, EnvironmentFault


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


def differing(what: str, values: Sequence[str]) -> ConfigError | None:
    """Return the error of all processes if their ``values``, in rank order, are not the same."""
    (usual, _), *others = Counter(values).most_common()
    if not others:
        return None
    odd = next(rank for rank, value in enumerate(values) if value != usual)
    error = ConfigError(
        f"{what} differs: process {odd} has {_short(values[odd])}, most have {_short(usual)}",
        "start all processes with the same program, configuration and files",
    )
    error.collective = True
    return error


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."
