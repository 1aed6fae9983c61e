"""Two answers and a verdict: labels, votes of several people, annotators, SHP's scores."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.prompts import Prompt, Texts
from decdpo.data.ingest.formats.values import Record, Unusable, finite, missing
from decdpo.data.ingest.formats.verdicts import Verdicts

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

    name : of the format, in the report. answers : columns of the answers. labels : columns of
    verdicts; with ``people`` each column is one person's. votes : column of a list of
    [person, verdict], or None. verdicts : what they mean. scores : columns of the scores of the
    first and of the second answer, or None.
    """

    name: str
    answers: tuple[str, str]
    labels: tuple[str, ...]
    votes: str | None
    people: bool
    verdicts: Verdicts
    scores: tuple[str, str] | None

    def require_clear(self, sample: Sequence[Record] = ()) -> None:
        """Refuse the verdicts met so far and in ``sample`` if they could mean two things.

        Raises ``DataError`` (see ``Verdicts.require_clear``).
        """
        for row in sample:
            for verdict in verdicts_of(row, self):
                self.verdicts.second(verdict)
        self.verdicts.require_clear(self.votes or ", ".join(self.labels))

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """What columns are used for (see ``Format.roles``)."""
        votes = (self.votes,) if self.votes else ()
        roles = {"answers": self.answers, "label": self.labels, "votes": votes}
        roles["scores"] = self.scores or ()
        return {role: names for role, names in roles.items() if names}


def find_answers(record: Record, columns: Columns, prompt: Prompt) -> Answers | None:
    """Return where this record keeps two answers and a verdict, or None if it does not."""
    answers = columns.answers or next((p for p in _ANSWERS if record.keys() >= set(p)), None)
    if answers is None or not (prompt.columns or prompt.listed):
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
    scores = None
    if columns.score_chosen and columns.score_rejected:
        scores = columns.score_chosen, columns.score_rejected
    elif shp and {"score_A", "score_B"} <= record.keys():
        scores = "score_A", "score_B"
    # SHP says 1 for A and 0 for B, where others say 0 for a tie.
    usual = ("1", "0") if shp and columns.label_scale is None else None
    return Answers(
        name="shp" if shp else "votes" if votes else "labels",
        answers=answers,
        labels=labels,
        votes=votes,
        people=len(labels) > 1 or labels[:1] != () and labels[0].startswith("annotator"),
        verdicts=Verdicts(answers, columns.label_values or usual, columns.label_scale),
        scores=scores,
    )


def read_answers(
    row: Record, where: Answers, read: Callable[[Record], Texts]
) -> list[Judgment | str]:
    """Return one judgment per verdict of a record; a string says why it is no preference.

    read : returns the prompt and both answers. The scores of the answers change places with them.
    """
    verdicts = _verdicts(row, where)
    if isinstance(verdicts, str):
        return [verdicts]
    try:
        prompt, one, two = read(row)
        scores = [finite(row.get(name), name) for name in where.scores or ()]
    except Unusable as error:
        return [str(error)] * len(verdicts)
    found: list[Judgment | str] = []
    for person, verdict in verdicts:
        second = where.verdicts.second(verdict)
        if isinstance(second, str):
            found.append(second)
            continue
        chosen, rejected = (two, one) if second else (one, two)
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
    second = where.verdicts.second(verdict)
    return second if isinstance(second, str) else where.answers[second]


def _verdicts(row: Record, where: Answers) -> list[tuple[str | None, Any]] | str:
    """Return (person, verdict) of each verdict of a record, or why there are none."""
    if not where.votes:
        return [(name if where.people else None, row.get(name)) for name in where.labels]
    votes = row.get(where.votes)
    if not isinstance(votes, list) or not votes:
        return "no votes"
    if not all(isinstance(vote, (list, tuple)) and len(vote) == 2 for vote in votes):
        return "a vote is not [person, verdict]"
    return [(None if missing(person) else str(person), verdict) for person, verdict in votes]
