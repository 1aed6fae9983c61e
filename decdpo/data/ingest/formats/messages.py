"""Lists of messages, in the ways in which data sets write them, as [{role, content}, ...]."""

import ast
import json
import re
import warnings
from typing import Any

from decdpo.data.ingest.formats.values import Unusable, decoded

Messages = list[dict[str, str]]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
_WRITTEN = re.compile(r"""\s*(array\()?\s*\[?\s*\{\s*['"](role|from|content|value)['"]\s*:""")
# Reading Python takes a hundred times the memory of the text.
_LONGEST_PYTHON = 1 << 22


def looks_written(value: Any) -> bool:
    """Say whether a value is the text of messages: tables hold them as JSON or as Python."""
    return isinstance(value, str) and _WRITTEN.match(value) is not None


def messages_of(value: Any, name: str, role: str) -> Messages:
    """Return a text, a message or a list of messages as a list of {role, content}.

    name : of the column, for reasons. role : who says a text that names nobody.

    Raises ``Unusable`` saying what is not a message, or not text.
    """
    if isinstance(value, bytes):
        value = decoded(value)
    if looks_written(value):
        value = _parsed(value, name)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [_message(item, name) for item in (value if isinstance(value, list) else [value])]


def turns_of(value: Any, name: str) -> Messages:
    """Return an earlier conversation: messages, or a list of [question, answer].

    Raises ``Unusable`` if it is neither.
    """
    if isinstance(value, str) and not looks_written(value):
        raise Unusable(f"{name} is not a list of turns")
    pairs = value if isinstance(value, list) else []
    if not all(isinstance(pair, (list, tuple)) for pair in pairs):
        return messages_of(value, name, "user")
    found = []
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Unusable(f"a turn of {name} is not [question, answer]")
        found += [{"role": r, "content": text} for r, text in zip(("user", "assistant"), pair)]
    return found


def _message(item: Any, name: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise Unusable(f"{name} is not a list of messages")
    who = item.get("role", item.get("from"))
    said = item.get("content", item.get("value"))
    if isinstance(said, list):
        said = "".join(_part(part, name) for part in said)
    if not isinstance(said, str):
        raise Unusable(f"a message of {name} is not text")
    if not isinstance(who, str):
        raise Unusable(f"a message of {name} has no role")
    if who.lower() not in ROLES:
        raise Unusable(f"a message of {name} has an unknown role: {who[:20]!r}")
    return {"role": ROLES[who.lower()], "content": said}


def _part(part: Any, name: str) -> str:
    """Return a part of a message that is split by kinds of content; templates join texts so."""
    if isinstance(part, dict):
        kind = part.get("type", "text")
        if kind != "text":
            raise Unusable(f"a message of {name} holds more than text: {str(kind)[:20]!r}")
        part = part.get("text")
    if not isinstance(part, str):
        raise Unusable(f"a message of {name} is not text")
    return part


def _parsed(text: str, name: str) -> Any:
    """Read messages written as JSON, or as Python writes a list of literals; nothing is run."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        if len(text) > _LONGEST_PYTHON:
            raise ValueError("too long")
        with warnings.catch_warnings():
            # Python warns of escapes that are none, which it keeps as they stand.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable(
            f"{name} holds messages as text that is neither JSON nor a Python list"
        ) from None
