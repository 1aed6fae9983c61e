"""Single values of records: what is missing, what is text, what is a number."""

import math
from typing import Any

Record = dict[str, Any]


class Unusable(Exception):
    """A record that holds no preference; the message is the reason, in the report's words."""


def missing(value: Any) -> bool:
    """Say whether a value stands for none: null, or the NaN that tables of numbers have instead."""
    return value is None or isinstance(value, float) and math.isnan(value)


def name_of(value: Any) -> str | None:
    """Return a person or another value that names a group as text, or None if it is missing.

    A whole number is written without a point: columns of numbers with gaps hold 1.0 for 1.

    Raises ``Unusable`` with the end of a sentence if the value is a list, an object or no text.
    """
    text: str | None
    if isinstance(value, str):
        text = value
    elif missing(value):
        return None
    elif isinstance(value, (list, dict)):
        raise Unusable("is not one value")
    elif isinstance(value, bytes):
        text = decoded(value)
    else:
        whole = isinstance(value, float) and value.is_integer()
        text = str(int(value) if whole else value)
    if text is None or not is_unicode(text):
        raise Unusable("is not valid Unicode")
    return text if text.strip() else None


def text_of(row: Record, name: str) -> str:
    """Return the text in a column. Raises ``Unusable`` if there is none, or something else."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes) and (text := decoded(value)) is not None:
        return text
    raise Unusable(f"no {name}" if missing(value) else f"{name} is not text")


def decoded(value: bytes) -> str | None:
    """Return bytes as text, or None: Parquet files of some writers hold texts so."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def finite(value: Any, name: str) -> float:
    """Return a number, written as one or as text. Raises ``Unusable`` if it is not finite."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"{name} is not a finite number")
    return number


def is_unicode(text: str) -> bool:
    """Say whether ``text`` can be written as UTF-8: JSON may escape half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """Return what a value is, for messages."""
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (bytes, "bytes that are not UTF-8"),
        (str, "text"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)
