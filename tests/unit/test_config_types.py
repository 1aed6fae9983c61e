"""The configuration is typed: mypy sees every key that is read, and no absent key is a default."""

import ast
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import decdpo
from decdpo.config import Config, parse
from decdpo.config.schema import SECTIONS

PACKAGE = Path(decdpo.__file__).parent
READERS = [
    path
    for folder in ("config", "build", "session", "commands")
    for path in sorted((PACKAGE / folder).rglob("*.py"))
]


def test_no_section_is_of_any_type() -> None:
    hints = get_type_hints(Config)
    assert list(hints) == list(SECTIONS) and Any not in hints.values()


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_absent_key_is_a_silent_default(path: Path) -> None:
    """A third argument to getattr is what is taken where a key is absent."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name)]
    assert not [call.lineno for call in named if call.func.id == "getattr" and len(call.args) > 2]


@pytest.mark.parametrize(
    "kind, steps, overlap",
    [("dsgd", 1, True), ("centralized", 1, False), ("outer_momentum", 10, False)],
)
def test_what_an_algorithm_leaves_no_choice_of_is_said_by_its_section(
    kind: str, steps: int, overlap: bool
) -> None:
    section = parse(f'[algorithm]\nkind = "{kind}"').algorithm
    assert (section.local_steps, section.overlap) == (steps, overlap)


def test_no_message_is_late_where_nothing_makes_it_late() -> None:
    assert parse("").staleness.max_age == 0
    assert parse('[staleness]\nkind = "arrival"').staleness.max_age == 2
