"""A pair as lines for people to read, with what is invisible in its texts made visible."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from decdpo.data.shard import Pair, PreferenceShard
from decdpo.data.turns import parse_turns

WIDTH = 100
LONGEST = 600
"""Characters of a text that are shown by default; the rest is cut out of its middle."""

_NAME = 12
_TAIL = 120


@dataclass(frozen=True)
class ShownPair:
    """A pair with what is known of it.

    pair : its texts. prompt_format : how its prompt is written (see ``ShardHeader``).
    about : facts by name, in the order of printing: source, agent, user, scores, weight.
    """

    pair: Pair
    prompt_format: str = "plain"
    about: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the pair as one JSON object."""
        texts = {name: getattr(self.pair, name) for name in ("prompt", "chosen", "rejected")}
        return {**self.about, **texts}


def of_shard(shard: PreferenceShard, row: int) -> ShownPair:
    """Return pair ``row`` of a shard with its source row, agent, user, scores and weight."""
    part = "training" if row < shard.num_train else "held out"
    about: dict[str, Any] = {
        "source": f"row {shard.places[row]}",
        "agent": f"{shard.agent}, {part}",
    }
    if shard.user is not None:
        about["user"] = str(shard.user[row])
    if shard.score_gap is not None:
        about["score gap"] = float(shard.score_gap[row])
    if shard.weight is not None:
        about["weight"] = float(shard.weight[row])
    return ShownPair(shard.pair(row), shard.prompt_format, about)


def pair_lines(shown: ShownPair, longest: int = LONGEST) -> Iterator[str]:
    """Yield the lines of a pair: its facts on the first, then prompt, chosen and rejected.

    longest : characters of each text that are shown.
    """
    facts = "; ".join(f"{name} {_fact(value)}" for name, value in shown.about.items())
    yield from textwrap.wrap(facts, WIDTH - 2, initial_indent="  ", subsequent_indent="    ")
    for name, text in _parts(shown):
        yield from [f"  {name}"] if text is None else text_lines(name, text, longest)


def wrapped(text: str, first: str, other: str) -> list[str]:
    """Return ``text`` as lines of at most WIDTH characters, the first and the other ones indented.

    Words stay whole: a path can be copied from its line, which may be longer for it.
    """
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def text_lines(name: str, text: str, longest: int = LONGEST) -> Iterator[str]:
    """Yield a text in quotes beside its ``name``, line breaks and control characters escaped."""
    cut = len(text) - longest
    if cut > 0:
        tail = min(_TAIL, longest // 2)
        middle = f" ... {cut:,} characters left out ... "
        quoted = visible(text[: longest - tail]) + middle + visible(text[-tail:])
    else:
        quoted = visible(text)
    lines = textwrap.wrap(
        quoted, WIDTH - 2 - _NAME, drop_whitespace=False, break_on_hyphens=False, tabsize=1
    )
    for number, line in enumerate(lines):
        yield f"  {'' if number else name:<{_NAME}}{line}".rstrip()


def visible(text: str) -> str:
    """Return ``text`` in quotes as JSON writes it, with letters of all scripts as they are."""
    return json.dumps(text, ensure_ascii=False)


def _parts(shown: ShownPair) -> Iterator[tuple[str, str | None]]:
    """Yield (name, text) of the pair; a prompt of messages is one part each, after a title."""
    if shown.prompt_format == "messages" and shown.pair.prompt:
        yield "prompt", None
        for message in parse_turns(shown.pair.prompt):
            yield f" {message['role']}", message["content"]
    else:
        yield "prompt", shown.pair.prompt
    yield "chosen", shown.pair.chosen
    yield "rejected", shown.pair.rejected


def _fact(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
