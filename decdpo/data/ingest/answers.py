"""Two answers and a verdict: labels, votes of several people, annotators, SHP's scores."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decdpo.data.ingest.columns import Columns
from decdpo.data.ingest.sources import Record
from decdpo.errors import DataError

_PROMPTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("prompt",), ""),
    (("debate", "stance"), ": "),
    (("instruction", "input"), "\n"),
    (("instruction",), ""),
    (("question",), ""),
    (("history",), ""),
)
_ANSWERS = (
    ("a1", "a2"),
    ("answer1", "answer2"),
    ("answer_1", "answer_2"),
    ("answer_a", "answer_b"),
    ("response1", "response2"),
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("human_ref_A", "human_ref_B"),
)
_LABELS = ("label", "labels", "winner", "preference", "gold")
_FIRST = {"1", "a", "a1", "first", "model_a"}
_SECOND = {"2", "b", "a2", "second", "model_b"}
_TIE = {"0", "tie", "equal", "both", "none", "neither", "draw"}


@dataclass(slots=True)
class Judgment:
    """One person's preference between two answers.

    second : whether the answer preferred is the one the source names second (for comparing
    judgments of one source row). prompt_cut_off : whether both answers began with the prompt, which
    was cut off them. The other fields are None where the source has no such column.
    """

    prompt: str
    chosen: str
    rejected: str
    second: bool = False
    user: str | None = None
    weight: float | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None
    chosen_features: list[float] | None = None
    rejected_features: list[float] | None = None
    prompt_cut_off: bool = False


@dataclass(frozen=True)
class Answers:
    """Where a file keeps its two answers and its verdicts.

    name : of the format, in the report. prompt : columns, joined by ``joiner``. answers : their
    columns. labels : columns of verdicts; with ``people`` each column is one person's. votes :
    column of a list of [person, verdict], or None. values : what a verdict says for the first and
    for the second answer, None for the usual words. scores : columns of the answers' scores, or
    None.
    """

    name: str
    prompt: tuple[str, ...]
    joiner: str
    answers: tuple[str, str]
    labels: tuple[str, ...]
    votes: str | None
    people: bool
    values: tuple[str, str] | None
    scores: tuple[str, str] | None


def find_answers(record: Record, columns: Columns) -> Answers | None:
    """Return where this record keeps two answers and a verdict, or None if it does not."""
    answers = columns.answers or next((p for p in _ANSWERS if record.keys() >= set(p)), None)
    prompt, joiner = (columns.prompt, "\n") if columns.prompt else _known_prompt(record)
    if answers is None or not prompt:
        return None
    votes, labels = columns.votes, columns.label
    if not votes and not labels:
        votes = "votes" if isinstance(record.get("votes"), list) else None
        annotators = tuple(sorted(name for name in record if re.fullmatch(r"annotator_?\d+", name)))
        labels = annotators or tuple(name for name in _LABELS if name in record)[:1]
    if votes:
        labels = ()
    elif not labels:
        return None
    shp = answers == ("human_ref_A", "human_ref_B") and labels == ("labels",)
    scored = shp and {"score_A", "score_B"} <= record.keys()
    return Answers(
        name="shp" if shp else "votes" if votes else "labels",
        prompt=prompt,
        joiner=joiner,
        answers=answers,
        labels=labels,
        votes=votes,
        people=len(labels) > 1 or labels[:1] != () and labels[0].startswith("annotator"),
        # SHP says 1 for A and 0 for B, where others say 0 for a tie.
        values=columns.label_values or (("1", "0") if shp else None),
        scores=("score_A", "score_B") if scored else None,
    )


def require_clear(sample: Sequence[Record], where: Answers) -> None:
    """Refuse verdicts of which it cannot be known what they mean.

    Many files say 0 for the first and 1 for the second answer, others 0 for a tie and 1 for the
    first: without a 2 there is no telling.

    Raises ``DataError`` if the records of ``sample`` say 0 and 1 and nothing else.
    """
    found = [_verdicts(row, where) for row in sample]
    said = {_said(v) for verdicts in found if not isinstance(verdicts, str) for _, v in verdicts}
    if where.values is None and said - {"", "None"} == {"0", "1"}:
        raise DataError(
            f"{where.votes or ', '.join(where.labels)} says 0 and 1, which may be the first and "
            "the second answer, or a tie and the first",
            "name what is said for the first and the second: --label-values 0,1 or 1,0, or 1,2 if "
            "0 is a tie",
        )


def read_answers(row: Record, where: Answers) -> list[Judgment | str]:
    """Return one judgment per verdict of a record; a string says why it is no preference."""
    verdicts = _verdicts(row, where)
    if isinstance(verdicts, str):
        return [verdicts]
    texts = [row.get(name) for name in (*where.prompt, *where.answers)]
    for name, text in zip((*where.prompt, *where.answers), texts):
        if not isinstance(text, str):
            return [f"no {name}" if text is None else f"{name} is not text"] * len(verdicts)
    parts: list[str] = [str(text) for text in texts]
    prompt = where.joiner.join(part for part in parts[:-2] if part)
    try:
        scores = [float(row[name]) for name in where.scores or ()]
    except (KeyError, TypeError, ValueError):
        return ["a score is not a number"] * len(verdicts)
    found: list[Judgment | str] = []
    for person, verdict in verdicts:
        second = _prefers_second(verdict, where)
        if isinstance(second, str):
            found.append(second)
            continue
        chosen, rejected = (parts[-1], parts[-2]) if second else (parts[-2], parts[-1])
        judgment = Judgment(prompt, chosen, rejected, second, person)
        if scores:
            ordered = scores[::-1] if second else scores
            judgment.score_chosen, judgment.score_rejected = ordered
        found.append(judgment)
    return found


def verdicts_of(row: Record, where: Answers) -> list[Any]:
    """Return the verdicts of a record as they stand there."""
    verdicts = _verdicts(row, where)
    return [] if isinstance(verdicts, str) else [verdict for _, verdict in verdicts]


def meaning(verdict: Any, where: Answers) -> str:
    """Return what a verdict is taken for: the preferred answer's column, or why it is no use."""
    second = _prefers_second(verdict, where)
    return second if isinstance(second, str) else where.answers[second]


def _verdicts(row: Record, where: Answers) -> list[tuple[str | None, Any]] | str:
    """Return (person, verdict) of each verdict of a record, or why there are none."""
    if not where.votes:
        return [(name if where.people else None, row.get(name)) for name in where.labels]
    votes = row.get(where.votes)
    if not isinstance(votes, list) or not votes:
        return "no votes"
    if not all(isinstance(vote, list) and len(vote) == 2 for vote in votes):
        return "a vote is not [person, verdict]"
    return [(str(person), verdict) for person, verdict in votes]


def _said(verdict: Any) -> str:
    """Return a verdict as a word; 1.0 is 1."""
    said = str(verdict).strip()
    return said.split(".")[0] if re.fullmatch(r"-?\d+\.0+", said) else said


def _prefers_second(verdict: Any, where: Answers) -> bool | str:
    if verdict is None or verdict == "":
        return "no label"
    said = _said(verdict)
    if where.values:
        if said in where.values:
            return said == where.values[1]
    elif said in where.answers:
        return said == where.answers[1]
    said = said.lower()
    if said in _TIE:
        return "tie"
    if where.values or said not in _FIRST | _SECOND:
        return "label not understood"
    return said in _SECOND


def _known_prompt(record: Record) -> tuple[tuple[str, ...], str]:
    for names, joiner in _PROMPTS:
        if record.keys() >= set(names):
            return names, joiner
    return (), ""
