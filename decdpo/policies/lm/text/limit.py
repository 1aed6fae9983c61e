"""How many tokens a prompt and an answer may have together."""

import os

from decdpo.errors import PolicyError

MAX_LENGTH = 512
"""Tokens of a prompt and an answer together, unless said or the model is made for fewer."""


def length_limit(
    asked: int, context: int | None, folder: str | os.PathLike[str]
) -> tuple[int, tuple[str, ...]]:
    """Return the limit in tokens, and notes; ``asked`` 0 is the usual one, or the context if less.

    Raises ``PolicyError`` if more is asked for than the model was made for.
    """
    if context is not None and asked > context:
        raise PolicyError(
            f"max_length = {asked}, but {folder} was made for {context} tokens",
            f"set max_length = {context} or less, or leave it out",
        )
    if context is not None and not asked and context < MAX_LENGTH:
        note = f"max_length = {context}, not {MAX_LENGTH}: {folder} was made for {context} tokens"
        return context, (note,)
    return asked or MAX_LENGTH, ()
