"""Documented, checked fields of the configuration's frozen dataclasses."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from decdpo.errors import ConfigError


def option(
    default: Any,
    doc: str,
    *,
    choices: Collection[str] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    path: bool = False,
    absent: str = "",
    word: str = "",
) -> Any:
    """Declare a field: its default, its one-line meaning, and the values it may take.

    low, high : inclusive bounds; above, below : exclusive ones. Tuples are bounded element by
    element. path : whether it names a file or folder, and absent : what else can be done where
    there is none. word : a string that may stand in the place of a number.
    """
    limits = {"low": low, "above": above, "high": high, "below": below}
    names = {"path": path, "absent": absent, "word": word}
    return dataclasses.field(
        default=default, metadata={"doc": doc, "choices": tuple(choices), **limits, **names}
    )


def options(section: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield key, field and value of every option of a section, an instance or a class of one.

    A section may hold others: their keys are dotted, as in ``lora.rank``. Of a class the values are
    the defaults.
    """
    for field in fields(section):
        value = field.default if isinstance(section, type) else getattr(section, field.name)
        if is_dataclass(value):
            yield from options(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def changed(section: Any, key: str, value: Any) -> Any:
    """Return ``section`` with another value of ``key``, which may be dotted."""
    name, _, rest = key.partition(".")
    if rest:
        value = changed(getattr(section, name), rest, value)
    return replace(section, **{name: value})


def coerce(key: str, field: Field[Any], value: Any, *, reading: bool = False) -> Any:
    """Return ``value`` as the type of ``field``, or raise ``ConfigError`` naming ``key``.

    An integer may stand for a float, a list for a tuple; nothing else is converted, so that
    ``rounds = "20"`` is an error and not a surprise.

    reading : for a run that is not trained any more: an exclusive upper bound may be reached, which
    earlier versions allowed.
    """
    default: Any = field.default
    wanted = type(default)
    if wanted is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong_type(key, value, "a list")
        inner = type(default[0]) if default else str
        value = tuple(_scalar(f"{key}[{i}]", inner, item) for i, item in enumerate(value))
        for item in value:
            _check(key, field, item, reading)
        return value
    word = field.metadata["word"]
    if word and value == word:
        return value
    value = _scalar(key, wanted, value, f" or {word!r}" * bool(word))
    _check(key, field, value, reading)
    return value


_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def _wrong_type(key: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(
        f"{key} = {value!r} is {_NAMES.get(type(value), type(value).__name__)}",
        f"give {wanted}",
    )


def _scalar(key: str, wanted: type, value: Any, other: str = "") -> Any:
    if type(value) is int and abs(value) >= 2**63:
        # The shortest text of so long a number is its size.
        raise ConfigError(
            f"{key} is an integer of {value.bit_length()} bits", "give one of 63 bits at most"
        )
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise _wrong_type(key, value, _NAMES[wanted] + other)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} = {value} is not finite", "give a finite number")
    if isinstance(value, str) and not writable(value):
        raise ConfigError(
            f"{key} = {value!r} holds what no file can", "give text without NUL, as UTF-8"
        )
    return value


def writable(text: str) -> bool:
    """Say whether ``text`` can be written as UTF-8, and be a path."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _check(key: str, field: Field[Any], value: Any, reading: bool) -> None:
    meta = field.metadata
    if meta["choices"] and value not in meta["choices"]:
        raise ConfigError(
            f"{key} = {value!r} is not known{nearest(str(value), meta['choices'])}",
            "choose one of " + ", ".join(meta["choices"]),
        )
    low, above, high, below = meta["low"], meta["above"], meta["high"], meta["below"]
    if low is not None and value < low:
        raise ConfigError(f"{key} = {value} is too small", f"give {low} or more")
    if above is not None and value <= above:
        raise ConfigError(f"{key} = {value} is too small", f"give more than {above}")
    if high is not None and value > high:
        raise ConfigError(f"{key} = {value} is too large", f"give {high} or less")
    if below is not None and (value > below or value == below and not reading):
        raise ConfigError(f"{key} = {value} is too large", f"give less than {below}")


def nearest(word: str, known: Collection[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known word most like ``word``, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listing(folder: Path, names: Iterable[str], what: str) -> str:
    """Return a sentence that names what there is in ``folder`` instead, six names at most."""
    found = sorted(names)
    if not found:
        return f"{folder.absolute()} has no {what}"
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return f"the {what}s in {folder.absolute()} are {', '.join(found[:6])}{more}"
