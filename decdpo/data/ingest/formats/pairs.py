"""Records to judgments: the preference formats, recognised by the columns a record has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from decdpo.data.ingest.formats.answers import Answers, Judgment, find_answers, read_answers
from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.explain import explain_unknown, misplaced_scores
from decdpo.data.ingest.formats.messages import looks_written
from decdpo.data.ingest.formats.prompts import Prompt, find_prompt, reader
from decdpo.data.ingest.formats.values import (
    Record,
    Unusable,
    decoded,
    finite,
    is_unicode,
    name_of,
    text_of,
)
from decdpo.errors import DataError

_TURN = "\n\nAssistant:"
_SCORES = ("score_chosen", "score_rejected")
_FEATURES = ("chosen_features", "rejected_features")
_PERSONA = ("answer_matching_behavior", "answer_not_matching_behavior")


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


def recognise(sample: Sequence[Record | str], columns: Columns) -> Format:
    """Return the format of a file from its first records.

    sample : a few records, and strings in place of rows that are none; the first record that fits a
        format decides, since real files have dirt.

    Raises ``DataError`` naming the columns if no record fits, or what the sample says could mean
    two things.
    """
    rows = [record for record in sample if not isinstance(record, str)]
    known = {name: None for record in rows for name in record}
    for name in columns.named():
        if name not in known:
            raise DataError(
                f"there is no column {name!r}", f"use one of: {', '.join(known) or 'none'}"
            )
    if (columns.score_chosen is None) != (columns.score_rejected is None):
        raise DataError("one column of scores", "name both: --score-chosen and --score-rejected")
    prompt = find_prompt(rows, columns)
    for record in rows:
        found = _format(record, columns, prompt)
        if found is not None:
            if found.answers is not None:
                misplaced_scores(known, columns, _SCORES, _FEATURES)
                found.answers.require_clear(rows)
            return replace(found, roles={**found.roles, **_extra_roles(found, known, columns)})
    raise explain_unknown(sample, columns, prompt.columns)


def judgments(form: Format, record: Record, columns: Columns) -> list[Judgment | str]:
    """Return what a record says under a format, checked; a string says why one is unusable."""
    try:
        found = form.read(record)
        extras = _extras(form, record, columns)
    except Unusable as error:
        return [str(error)]
    return [
        item if isinstance(item, str) else (_fault(item) or _extended(item, extras))
        for item in found
    ]


def _format(record: Record, columns: Columns, prompt: Prompt) -> Format | None:
    chosen, rejected = columns.chosen or "chosen", columns.rejected or "rejected"
    answers = find_answers(record, columns, prompt)
    if answers is not None and (columns.answers or columns.label or columns.votes):
        return _answers_format(record, answers, prompt)
    if chosen in record and rejected in record:
        return _dialogue_format(record, columns, prompt, chosen, rejected)
    if {"question", _PERSONA[0]} <= record.keys():
        prompt = Prompt(("question",))
        return _pairs_format("persona", prompt, _PERSONA)
    if answers is not None:
        return _answers_format(record, answers, prompt)
    if record.keys() >= set(_FEATURES):
        return Format("features", "plain", lambda row: [Judgment("", "", "")])
    return None


def _answers_format(record: Record, where: Answers, prompt: Prompt) -> Format:
    if _listed([record.get(name) for name in (*prompt.columns, *where.answers)]):
        prompt = replace(prompt, listed=True)
    read = reader(prompt, where.answers)
    return Format(
        where.name,
        prompt.format,
        lambda row: read_answers(row, where, read),
        {**prompt.roles, **where.roles},
        where,
    )


def _dialogue_format(
    record: Record, columns: Columns, prompt: Prompt, chosen: str, rejected: str
) -> Format | None:
    answers = [record[chosen], record[rejected]]
    if not columns.prompt:
        prompt = _conversation(record, prompt, answers)
    questions = [record.get(name) for name in prompt.columns]
    if prompt.listed or _listed(answers) or any(map(_listed_alone, questions)):
        name = "sharegpt" if prompt.columns == ("conversations",) else "messages"
        return _pairs_format(name, replace(prompt, listed=True), (chosen, rejected))
    if not all(map(_written, (*answers, *questions))):
        return None
    if prompt.columns:
        return _pairs_format("strings", prompt, (chosen, rejected))
    if all(isinstance(value, str) and _TURN in value for value in answers):
        roles = {"chosen": (chosen,), "rejected": (rejected,)}
        return Format("hh", "hh", lambda row: _read_transcripts(row, chosen, rejected), roles)
    return None


def _conversation(record: Record, prompt: Prompt, answers: list[Any]) -> Prompt:
    """Return the prompt with the column of a conversation that is no prompt by its name."""
    if "conversations" in record:
        return replace(prompt, columns=("conversations",), listed=True)
    # Beside whole dialogues, "messages" is a copy of one of them.
    whole = any(isinstance(value, list) and len(value) > 1 for value in answers)
    if "messages" in record and not prompt.columns and not whole:
        return replace(prompt, columns=("messages",), listed=True)
    return prompt


def _written(value: Any) -> bool:
    return isinstance(value, str) or isinstance(value, bytes) and decoded(value) is not None


def _listed(values: list[Any]) -> bool:
    """Say whether a value is a message or a list of messages, or all are the text of such."""
    return any(isinstance(value, (list, dict)) for value in values) or all(
        map(looks_written, values)
    )


def _listed_alone(value: Any) -> bool:
    return _listed([value])


def _pairs_format(name: str, prompt: Prompt, answers: tuple[str, str]) -> Format:
    read = reader(prompt, answers)
    roles = {**prompt.roles, "chosen": answers[:1], "rejected": answers[1:]}
    return Format(name, prompt.format, lambda row: [Judgment(*read(row))], roles)


def _read_transcripts(row: Record, chosen: str, rejected: str) -> list[Judgment | str]:
    """Split both dialogues after the last "Assistant:"; the answer keeps its leading space."""
    prompts, answers = [], []
    for name in (chosen, rejected):
        dialogue = text_of(row, name)
        cut = dialogue.rfind(_TURN)
        if cut < 0:
            return [f"no Assistant turn in {name}"]
        prompts.append(dialogue[: cut + len(_TURN)])
        answers.append(dialogue[cut + len(_TURN) :])
    if prompts[0] != prompts[1]:
        return ["prompts differ"]
    return [Judgment(prompts[0], answers[0], answers[1])]


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


def _extras(form: Format, record: Record, columns: Columns) -> dict[str, Any]:
    """Return the numbers and names that any format may carry beside its texts."""
    extras: dict[str, Any] = {}
    names = (columns.score_chosen or _SCORES[0], columns.score_rejected or _SCORES[1])
    if form.answers is None and all(name in record for name in names):
        extras.update(zip(_SCORES, (finite(record[name], name) for name in names)))
    weight = columns.weight or "weight"
    if weight in record:
        extras["weight"] = finite(record[weight], weight)
        if extras["weight"] <= 0:
            raise Unusable(f"{weight} is not positive")
    user = columns.user or "user"
    try:
        extras["user"] = name_of(record.get(user))
    except Unusable as error:
        raise Unusable(f"{user} {error}") from None
    for name in _FEATURES:
        if isinstance(record.get(name), list):
            extras[name] = [finite(value, name) for value in record[name]]
    if len(extras.get("chosen_features", ())) != len(extras.get("rejected_features", ())):
        raise Unusable("features of different lengths")
    return extras


def _extra_roles(
    form: Format, known: Mapping[str, None], columns: Columns
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


def _extended(item: Judgment, extras: dict[str, Any]) -> Judgment:
    for name, value in extras.items():
        if getattr(item, name) is None:
            setattr(item, name, value)
    return item
