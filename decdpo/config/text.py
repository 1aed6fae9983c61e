"""A section of the configuration as text: as TOML, and in few words."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from decdpo.config.options import options
from decdpo.config.schema import SECTIONS


def literal(value: Any) -> str:
    """Write one value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    return repr(value)


def section_text(name: str, section: Any, annotate: bool) -> str:
    """Return the TOML of a section and those in it, with every key's meaning if ``annotate``."""
    # Under python -OO a dataclass has no docstring but its signature.
    written = sys.flags.optimize < 2
    summary = (type(section).__doc__ or "").strip().splitlines() if written else []
    lines = [f"# {summary[0]}"] if annotate and summary else []
    lines.append(f"[{name}]")
    ordered = sorted(fields(section), key=lambda f: f.name != "kind")
    below = []
    for f in ordered:
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            if annotate or value != f.default:
                below.append("\n" + section_text(f"{name}.{f.name}", value, annotate))
            continue
        text = f"{f.name} = {literal(value)}"
        if annotate:
            text = f"{text:<34}# {_meaning(name, f)}"
        lines.append(text)
    return "\n".join(lines) + "\n" + "".join(below)


def said(section: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a section; of one within it only if it is not all defaults."""
    for field in fields(section):
        value = getattr(section, field.name)
        if not dataclasses.is_dataclass(value):
            yield field.name, value
        elif value != field.default:
            yield from ((key, item) for key, _, item in options(value, f"{field.name}."))


def _meaning(section: str, field: dataclasses.Field[Any]) -> str:
    schema = SECTIONS.get(section)
    doc = str(field.metadata["doc"])
    choices = field.metadata["choices"]
    if field.name == "kind" and isinstance(schema, dict):
        choices = tuple(schema)
    return f"{doc}: {', '.join(choices)}" if choices else doc
