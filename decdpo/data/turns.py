"""A prompt that is a list of chat messages, as a shard keeps it: JSON text."""

from collections.abc import Mapping
from typing import Any

from decdpo.errors import DataError
from decdpo.files import parse_json


def parse_turns(prompt: str) -> list[dict[str, Any]]:
    """Return the messages of a prompt, each with ``role`` and ``content`` and what else it has.

    Raises ``DataError`` for JSON that is no list of messages.
    """
    try:
        turns = parse_json(prompt)
    except ValueError:
        turns = None
    if not isinstance(turns, list) or not all(map(_is_message, turns)):
        raise DataError(
            f"the prompt is no list of messages with role and content: {prompt[:60]!r}",
            "make the shards again with `decdpo shard`",
        )
    return turns


def _is_message(turn: Any) -> bool:
    if not isinstance(turn, Mapping):
        return False
    return all(isinstance(turn.get(name), str) for name in ("role", "content"))
