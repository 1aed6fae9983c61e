"""Why no preferences can be read from a file: its columns, and what is wrong in the first row."""

from collections.abc import Collection, Sequence

from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.values import Record, Unusable, kind_of, missing, text_of
from decdpo.errors import DataError

_NAME = "name the columns with --prompt, --chosen and --rejected, or --answers and --label"
_ONE_ANSWER = ("completion", "output", "response", "answer", "text")
_DIALOGUES = ("messages", "conversations")
_LIKED = ("label", "kto_tag", "labels")


def explain_unknown(
    sample: Sequence[Record | str], columns: Columns, prompt: tuple[str, ...]
) -> DataError:
    """Make the error for a file that fits no format.

    sample : its first rows. prompt : the columns of the prompt, if they are known.
    """
    rows = [(n, record) for n, record in enumerate(sample, 1) if not isinstance(record, str)]
    known = {name: None for _, record in rows for name in record}
    chosen, rejected = columns.chosen or "chosen", columns.rejected or "rejected"
    for number, record in rows:
        if chosen in record and rejected in record:
            return _wrong_values(record, number, (*prompt, chosen, rejected), bool(prompt))
    liked = next((name for name in _LIKED if name in known), None)
    one = next((name for name in (*_ONE_ANSWER, *_DIALOGUES) if name in known), None)
    if one is not None:
        what = f"and whether it is wanted ({liked}) " if liked else ""
        return DataError(
            f"a row holds one answer ({one}) {what}and not two to choose between; its columns "
            f"are: {', '.join(known)}",
            "training takes pairs, the loss kto too: join a wanted and an unwanted answer to "
            "each prompt into one row with the columns prompt, chosen and rejected; if a column "
            "rates the answer, --rating COLUMN (or --rank) makes pairs of the answers to a prompt",
        )
    inside = next((n for n, v in rows[0][1].items() if _holds_rows(v)), None) if rows else None
    if len(rows) == 1 and inside is not None:
        return DataError(
            f"the file is one object whose rows seem to be in {inside!r}",
            f"take them out: jq '.[\"{inside}\"]'",
        )
    return DataError(
        f"no known preference format has these columns: {', '.join(known) or 'none'}", _NAME
    )


def misplaced_scores(
    known: Collection[str],
    columns: Columns,
    scores: tuple[str, str],
    features: tuple[str, str],
) -> None:
    """Refuse columns of a chosen answer in a file that says only by its label which that is.

    Raises ``DataError`` if such columns of scores are not named by the user, or features are there.
    """
    if columns.score_chosen is None and set(scores) <= set(known):
        raise DataError(
            f"{' and '.join(scores)} stand beside two answers and a verdict: whether they follow "
            "the verdict or the order of the answers is not known",
            f"--score-chosen {scores[0]} --score-rejected {scores[1]} takes them for the scores of "
            "the first and of the second answer",
        )
    if set(features) <= set(known):
        raise DataError(
            f"{' and '.join(features)} stand beside two answers and a verdict, which they cannot "
            "follow",
            "give features in rows with the columns prompt, chosen and rejected",
        )


def _wrong_values(
    record: Record, number: int, names: Sequence[str], prompted: bool
) -> DataError:
    """Make the error for a row that has the columns of a format, but not its values."""
    for name in names:
        try:
            text_of(record, name)
        except Unusable as error:
            value = record.get(name)
            where = f"first in row {number}"
            detail = where if missing(value) else f"{kind_of(value)}, {where}"
            return DataError(
                f"{error} ({detail})",
                "write prompts and answers as text or as lists of messages; " + _NAME,
            )
    if not prompted:
        return DataError(
            f"{' and '.join(names)} hold question and answer in one text, and no "
            f"'\\n\\nAssistant:' says where the answer begins (first in row {number})",
            "name the column of the prompt with --prompt, and give the answers alone",
        )
    return DataError(f"row {number} fits no known preference format", _NAME)


def _holds_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value[:10])
