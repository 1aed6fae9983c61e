"""The prompt of a record, which may be spread over several columns, and the two answers to it."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.messages import Messages, looks_written, messages_of, turns_of
from decdpo.data.ingest.formats.values import Record, Unusable, missing, text_of

Texts = tuple[str, str, str]
"""A prompt and two answers."""

_PROMPTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("prompt",), ""),
    (("debate", "stance"), ": "),
    (("question",), ""),
    (("instruction", "input"), "\n"),
    (("instruction",), ""),
    (("history",), ""),
)
_SYSTEMS = ("system", "system_prompt")
_HISTORY = "history"
# The second column of an instruction is empty where the instruction says it all.
_MAY_LACK = frozenset({"input"})


@dataclass(frozen=True)
class Prompt:
    """Where a file keeps what comes before the answers.

    columns : joined by ``joiner``; none if the answers hold it. system : column of the system's
    turn. history : column of the turns before the question. listed : whether prompts and answers
    are read as messages; then so is the prompt of the shards. unread : columns of system and
    history that are empty in the first rows; a row that fills one is refused.
    """

    columns: tuple[str, ...]
    joiner: str = "\n"
    system: str | None = None
    history: str | None = None
    listed: bool = False
    unread: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """The prompt format of the shards (see ``ShardHeader``)."""
        return "messages" if self.listed else "plain"

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """What columns are used for (see ``Format.roles``)."""
        roles = {"prompt": self.columns} if self.columns else {}
        for role, name in (("system", self.system), ("history", self.history)):
            if name is not None:
                roles[role] = (name,)
        return roles


def find_prompt(sample: Sequence[Record], columns: Columns) -> Prompt:
    """Return where records keep their prompt; what only some rows have is found in ``sample``."""
    known = {name for record in sample for name in record}
    names, joiner = (columns.prompt, "\n") if columns.prompt else _usual(known)
    system = columns.system or _filled(sample, _SYSTEMS, str)
    history = columns.history or _filled(sample, (_HISTORY,), (list, str))
    if history is not None and columns.history is None:
        # A history that is one text is a prompt of its own, or nothing that could be taken apart.
        values = [record.get(history) for record in sample]
        if not any(isinstance(v, list) or looks_written(v) for v in values):
            history = None
    system, history = (None if name in names else name for name in (system, history))
    taken = {*names, system, history}
    unread = tuple(name for name in (*_SYSTEMS, _HISTORY) if name not in taken)
    return Prompt(names, joiner, system, history, bool(system or history), unread)


def _usual(known: Collection[str]) -> tuple[tuple[str, ...], str]:
    found = ((names, joiner) for names, joiner in _PROMPTS if set(names).issubset(known))
    return next(found, ((), ""))


def _filled(sample: Sequence[Record], names: Sequence[str], kind: Any) -> str | None:
    """Return the first of the columns that holds something of this kind in a record."""
    for name in names:
        if any(isinstance(record.get(name), kind) and record[name] for record in sample):
            return name
    return None


def reader(prompt: Prompt, answers: tuple[str, str]) -> Callable[[Record], Texts]:
    """Return the function that reads prompt and answers of a record, or raises ``Unusable``."""
    read = _read_messages if prompt.listed else _read_texts

    def checked(row: Record) -> Texts:
        for name in prompt.unread:
            if name in row:
                _require_empty(row[name], name)
        return read(row, prompt, answers)

    return checked


def _require_empty(value: Any, name: str) -> None:
    """Refuse a turn before the question that the format of the file has no place for."""
    if value and isinstance(value, list if name == _HISTORY else str):
        option = "history" if name == _HISTORY else "system"
        raise Unusable(f"{name} is empty in the first rows and not here (name it: --{option})")


def _read_texts(row: Record, prompt: Prompt, answers: tuple[str, str]) -> Texts:
    return _joined(row, prompt), text_of(row, answers[0]), text_of(row, answers[1])


def _joined(row: Record, prompt: Prompt) -> str:
    parts = [
        "" if name in _MAY_LACK and missing(row.get(name)) else text_of(row, name)
        for name in prompt.columns
    ]
    return prompt.joiner.join(part for part in parts if part)


def _read_messages(row: Record, prompt: Prompt, answers: tuple[str, str]) -> Texts:
    """Read lists of messages; the last one of each list is the answer, the rest its context.

    A context in the answers' lists wins over a prompt that is a plain string (which then only
    repeats the question); a prompt that is a list comes before it.
    """
    contexts, texts = [], []
    for name in answers:
        if missing(row.get(name)):
            raise Unusable(f"no {name}")
        *context, last = messages_of(row[name], name, "assistant") or [{}]
        if last.get("role") != "assistant":
            raise Unusable(f"{name} does not end with an assistant's message")
        contexts.append(context)
        texts.append(last["content"])
    if contexts[0] != contexts[1]:
        raise Unusable("prompts differ")
    context = _context(row, prompt, contexts[0])
    if context and not context[-1]["content"].strip():
        raise Unusable("empty prompt")
    return json.dumps(context, ensure_ascii=False) if context else "", texts[0], texts[1]


def _context(row: Record, prompt: Prompt, context: Messages) -> Messages:
    before = _question(row, prompt, bool(context))
    if prompt.history is not None and not missing(row.get(prompt.history)):
        systems = 1 if before and before[0]["role"] == "system" else 0
        before[systems:systems] = turns_of(row[prompt.history], prompt.history)
    if not context or before[-len(context) :] == context:
        context = before
    elif context[: len(before)] != before:
        context = before + context
    system = row.get(prompt.system) if prompt.system is not None else None
    if missing(system) or system == "":
        return context
    if not isinstance(system, str):
        raise Unusable(f"{prompt.system} is not text")
    turn = {"role": "system", "content": system}
    if context and context[0]["role"] == "system":
        if context[0] != turn:
            raise Unusable(f"{prompt.system} and the messages have different system turns")
        return context
    return [turn, *context]


def _question(row: Record, prompt: Prompt, answered: bool) -> Messages:
    """Return the turns of the prompt's columns.

    answered : whether the answers' lists hold a context, which a plain text only repeats.
    """
    if len(prompt.columns) != 1:
        plain = [] if answered or not prompt.columns else [_joined(row, prompt)]
        return [{"role": "user", "content": text} for text in plain]
    name = prompt.columns[0]
    value = row.get(name)
    if answered and (missing(value) or isinstance(value, str) and not looks_written(value)):
        return []
    if missing(value):
        raise Unusable(f"no {name}")
    return messages_of(value, name, "user")
