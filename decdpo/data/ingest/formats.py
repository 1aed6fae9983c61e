"""Records to judgments: the preference formats, recognised by the columns a record has."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from decdpo.data.ingest.answers import Answers, Judgment, find_answers, read_answers, require_clear
from decdpo.data.ingest.columns import Columns
from decdpo.data.ingest.sources import Record
from decdpo.errors import DataError

_TURN = "\n\nAssistant:"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
_QUESTIONS = ("prompt", "question", "instruction")
_SCORES = ("score_chosen", "score_rejected")
_FEATURES = ("chosen_features", "rejected_features")
_PERSONA = {
    "prompt": ("question",),
    "chosen": ("answer_matching_behavior",),
    "rejected": ("answer_not_matching_behavior",),
}


@dataclass(frozen=True)
class Format:
    """A way to read preferences from records.

    name : shown in the report. prompt_format : of the shards (see ``ShardHeader``).
    read : record -> its judgments; a string in place of a judgment says why it is unusable.
    roles : what columns are used for: role -> columns. The roles are prompt, system, history,
        chosen, rejected, answers, label, votes, user, weight, scores and features.
    answers : where two answers and a verdict are kept, if that is the format.
    """

    name: str
    prompt_format: str
    read: Callable[[Record], list[Judgment | str]]
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    answers: Answers | None = None


def recognise(sample: Sequence[Record], columns: Columns) -> Format:
    """Return the format of a file from its first records.

    sample : a few records; the first one that fits a format decides, since real files have dirt.

    Raises ``DataError`` naming the columns if no record fits, or the sample's verdicts could mean
    two things.
    """
    known = {name: None for record in sample for name in record}
    names = ", ".join(known) or "none"
    for name in columns.named():
        if name not in known:
            raise DataError(f"there is no column {name!r}", f"use one of: {names}")
    for record in sample:
        found = _format(record, columns)
        if found is not None:
            if found.answers is not None:
                require_clear(sample, found.answers)
            return replace(found, roles={**found.roles, **_extra_roles(found, known, columns)})
    raise DataError(
        f"no known preference format has these columns: {names}",
        "name the columns with --prompt, --chosen and --rejected, or --answers and --label",
    )


def judgments(form: Format, record: Record, columns: Columns) -> list[Judgment | str]:
    """Return what a record says under a format, checked; a string says why one is unusable."""
    try:
        found = form.read(record)
        extras = _extras(record, columns)
    except Unusable as error:
        return [str(error)]
    return [
        item if isinstance(item, str) else (_fault(item) or _extended(item, extras))
        for item in found
    ]


class Unusable(Exception):
    """A record that holds no preference; the message is the reason, in the report's words."""


def _format(record: Record, columns: Columns) -> Format | None:
    chosen, rejected = columns.chosen or "chosen", columns.rejected or "rejected"
    answers = find_answers(record, columns)
    if answers is not None and (columns.answers or columns.label or columns.votes):
        return _answers_format(answers)
    if chosen in record and rejected in record:
        return _dialogue_format(record, columns, chosen, rejected)
    if {"question", "answer_matching_behavior"} <= record.keys():
        return Format("persona", "plain", _read_persona, _PERSONA)
    if answers is not None:
        return _answers_format(answers)
    if {"chosen_features", "rejected_features"} <= record.keys():
        return Format("features", "plain", lambda row: [Judgment("", "", "")])
    return None


def _answers_format(where: Answers) -> Format:
    roles = {"prompt": where.prompt, "answers": where.answers, "label": where.labels}
    if where.votes:
        roles["votes"] = (where.votes,)
    if where.scores:
        roles["scores"] = where.scores
    roles = {role: names for role, names in roles.items() if names}
    return Format(where.name, "plain", lambda row: read_answers(row, where), roles, where)


def _dialogue_format(record: Record, columns: Columns, chosen: str, rejected: str) -> Format | None:
    prompt = columns.prompt or next(((n,) for n in _QUESTIONS if n in record), ())
    values = [record[chosen], record[rejected], *(record.get(name) for name in prompt)]
    if "conversations" in record and not columns.prompt:
        prompt, name = ("conversations",), "sharegpt"
    elif any(isinstance(value, (list, dict)) for value in values):
        name = "messages"
    else:
        name = ""
    roles = {"prompt": prompt, "chosen": (chosen,), "rejected": (rejected,)}
    if not prompt:
        del roles["prompt"]
    if name:
        context = prompt[0] if prompt else None
        if name == "sharegpt" and "system" in record:
            roles["system"] = ("system",)
        return Format(
            name, "messages", lambda row: _read_messages(row, context, chosen, rejected), roles
        )
    if not all(isinstance(value, str) for value in values):
        return None
    if prompt:
        return Format(
            "strings", "plain", lambda row: _read_strings(row, prompt, chosen, rejected), roles
        )
    if all(_TURN in value for value in values):
        return Format("hh", "hh", lambda row: _read_transcripts(row, chosen, rejected), roles)
    return None


def _read_strings(
    row: Record, prompt: tuple[str, ...], chosen: str, rejected: str
) -> list[Judgment | str]:
    parts = [_text(row, name) for name in prompt]
    return [Judgment("\n".join(parts), _text(row, chosen), _text(row, rejected))]


def _read_transcripts(row: Record, chosen: str, rejected: str) -> list[Judgment | str]:
    """Split both dialogues after the last "Assistant:"; the answer keeps its leading space."""
    prompts, answers = [], []
    for name in (chosen, rejected):
        dialogue = _text(row, name)
        cut = dialogue.rfind(_TURN)
        if cut < 0:
            return [f"no Assistant turn in {name}"]
        prompts.append(dialogue[: cut + len(_TURN)])
        answers.append(dialogue[cut + len(_TURN) :])
    if prompts[0] != prompts[1]:
        return ["prompts differ"]
    return [Judgment(prompts[0], answers[0], answers[1])]


def _read_persona(row: Record) -> list[Judgment | str]:
    chosen, rejected = "answer_matching_behavior", "answer_not_matching_behavior"
    return [Judgment(_text(row, "question"), _text(row, chosen), _text(row, rejected))]


def _read_messages(
    row: Record, prompt: str | None, chosen: str, rejected: str
) -> list[Judgment | str]:
    """Read lists of messages; the last one of each list is the answer, the rest its context.

    A context in the answers' lists wins over a prompt that is a plain string (which then only
    repeats the question); a prompt that is a list comes before it.
    """
    contexts, answers = [], []
    for name in (chosen, rejected):
        *context, last = _messages(row.get(name), name, "assistant") or [{}]
        if last.get("role") != "assistant":
            return [f"{name} does not end with an assistant's message"]
        contexts.append(context)
        answers.append(last["content"])
    if contexts[0] != contexts[1]:
        return ["prompts differ"]
    context = contexts[0]
    if prompt is not None and not (context and isinstance(row.get(prompt), str)):
        before = _messages(row.get(prompt), prompt, "user")
        context = context if context[: len(before)] == before else before + context
    if prompt == "conversations" and isinstance(row.get("system"), str) and row["system"]:
        context = [{"role": "system", "content": row["system"]}, *context]
    text = json.dumps(context, ensure_ascii=False) if context else ""
    return [Judgment(text, answers[0], answers[1])]


def _messages(value: Any, name: str, role: str) -> list[dict[str, str]]:
    """Return a string, a message or a list of messages as a list of {role, content}."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    found = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            raise Unusable(f"{name} is not a list of messages")
        said = item.get("content", item.get("value"))
        who = item.get("role", item.get("from"))
        if not isinstance(said, str):
            raise Unusable(f"a message of {name} is not text")
        if who not in _ROLES:
            raise Unusable(f"a message of {name} has an unknown role")
        found.append({"role": _ROLES[who], "content": said})
    return found


def _text(row: Record, name: str) -> str:
    value = row.get(name)
    if isinstance(value, str):
        return value
    raise Unusable(f"no {name}" if value is None else f"{name} is not text")


def _fault(item: Judgment) -> str | None:
    if not (item.prompt or item.chosen or item.rejected):
        return None
    if not item.prompt.strip():
        return "empty prompt"
    if not item.chosen.strip() or not item.rejected.strip():
        return "empty answer"
    if item.chosen == item.rejected:
        return "equal answers"
    return None if is_unicode(item.prompt + item.chosen + item.rejected) else "not valid Unicode"


def is_unicode(text: str) -> bool:
    """Say whether ``text`` can be written as UTF-8: JSON may escape half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _extras(record: Record, columns: Columns) -> dict[str, Any]:
    """Return the numbers and names that any format may carry beside its texts."""
    extras: dict[str, Any] = {}
    names = (columns.score_chosen or _SCORES[0], columns.score_rejected or _SCORES[1])
    if all(name in record for name in names):
        extras.update(zip(_SCORES, (_number(record, name) for name in names)))
    weight = columns.weight or "weight"
    if weight in record:
        extras["weight"] = _number(record, weight)
        if extras["weight"] <= 0:
            raise Unusable(f"{weight} is not positive")
    user = columns.user or "user"
    if record.get(user) is not None:
        extras["user"] = str(record[user])
        if not is_unicode(extras["user"]):
            raise Unusable(f"{user} is not valid Unicode")
    for name in _FEATURES:
        if isinstance(record.get(name), list):
            extras[name] = [_finite(value, name) for value in record[name]]
    if len(extras.get("chosen_features", ())) != len(extras.get("rejected_features", ())):
        raise Unusable("features of different lengths")
    return extras


def _extra_roles(
    form: Format, known: Collection[str], columns: Columns
) -> dict[str, tuple[str, ...]]:
    """Return the roles of the columns that ``_extras`` reads."""
    found = {
        "user": (columns.user or "user",),
        "weight": (columns.weight or "weight",),
        "scores": (columns.score_chosen or _SCORES[0], columns.score_rejected or _SCORES[1]),
        "features": _FEATURES,
    }
    return {
        role: names
        for role, names in found.items()
        if role not in form.roles and all(name in known for name in names)
    }


def _number(record: Record, name: str) -> float:
    return _finite(record[name], name)


def _finite(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"{name} is not a finite number")
    return number


def _extended(item: Judgment, extras: dict[str, Any]) -> Judgment:
    for name, value in extras.items():
        if getattr(item, name) is None:
            setattr(item, name, value)
    return item
