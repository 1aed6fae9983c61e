"""Records to ratings: one answer and its rating a row, or a list of answers with their ratings.

Lists are read as UltraFeedback (`completions`, each with a `response` and an `overall_score`),
Nectar (`answers`, each with a `rank`) and argilla (`generations` beside `ratings`) write them; rows
as HelpSteer and tables of users, items and ratings do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.messages import looks_written
from decdpo.data.ingest.formats.prompts import Prompt, find_prompt, reader
from decdpo.data.ingest.formats.values import Record, Unusable, finite, is_unicode, name_of, text_of
from decdpo.errors import DataError

_LISTS = ("completions", "answers", "responses", "generations", "outputs")
_TEXTS = ("response", "answer", "completion", "output", "generation", "content", "text")
_RATINGS = ("rating", "ratings", "overall_score", "score", "scores", "stars")
_RANKS = ("rank", "ranks", "ranking")
_USERS = ("user", "user_id", "userId", "userid")


@dataclass(frozen=True)
class RatedColumns:
    """Names of the columns of rated answers; what is left out is recognised by its usual name.

    item : what names an item, in the ratings and in the file of the items. text : of an answer, or
    of an item. rating : a number that is higher for a better answer. rank : 1 for the best. In
    lists of objects ``text``, ``rating`` and ``rank`` are keys of the objects; a point goes into an
    object: ``annotations.helpfulness.Rating``. prompt_text : one prompt for all answers.
    """

    item: str | None = None
    text: str | None = None
    rating: str | None = None
    rank: str | None = None
    prompt_text: str | None = None


@dataclass(frozen=True, slots=True)
class Rating:
    """One rating. answer : the text, or the item's name. value : higher is better."""

    prompt: str
    answer: str
    value: float
    user: str | None = None


@dataclass(frozen=True)
class RatedFormat:
    """A way to read ratings from records.

    name : shown in the report. prompt_format : of the shards. read : record -> ratings; a string
    in place of a rating says why it is unusable. roles : what columns are used for. ranked :
    whether ranks were turned into ratings: minus the rank.
    """

    name: str
    prompt_format: str
    read: Callable[[Record], list[Rating | str]]
    roles: Mapping[str, tuple[str, ...]]
    ranked: bool


@dataclass(frozen=True)
class _List:
    """Where a record keeps a list of answers: objects, or texts beside a list of ratings."""

    column: str
    text: str | None
    ratings: str
    ranked: bool


def lists_in(sample: Sequence[Record], columns: RatedColumns = RatedColumns()) -> _List | None:
    """Return where records keep several answers and their ratings, or None if they do not."""
    for record in sample:
        for name in sorted(record, key=lambda name: (name not in _LISTS, name)):
            values = record[name]
            if not isinstance(values, (list, tuple)) or len(values) < 2:
                continue
            found = _objects(name, values, columns) or _parallel(name, values, record, columns)
            if found is not None:
                return found
    return None


def recognise_rated(
    sample: Sequence[Record],
    columns: Columns,
    rated: RatedColumns,
    items: Sequence[Record] | None = None,
) -> RatedFormat:
    """Return how the records of a file hold ratings.

    sample : its first records. items : the first of the file of the items, or None without one.

    Raises ``DataError`` naming the column that is missing, or what could mean two things.
    """
    known = {name: None for record in sample for name in record}
    several = None if items is not None or rated.item else lists_in(sample, rated)
    _require_known(known, columns, rated, several, items)
    user = columns.user or next((name for name in _USERS if name in known), None)
    about = {name: None for record in [*sample, *(items or ())] for name in record}
    prompt = Prompt(())
    if rated.prompt_text is None:
        prompt = find_prompt([*sample, *(items or ())], columns)
        if not prompt.columns:
            raise DataError(
                f"there is no prompt in the columns {', '.join(about)}",
                "name its column with --prompt, or give one for all answers with --prompt-text",
            )
    elif columns.prompt:
        raise DataError("--prompt and --prompt-text are two prompts", "leave one out")
    roles: dict[str, tuple[str, ...]] = {"user": (user,)} if user else {}
    if several is not None:
        return _several(several, sample, prompt, rated, roles, user)
    return _single(sample, known, prompt, rated, roles, user, items is not None)


def _single(
    sample: Sequence[Record],
    known: Mapping[str, None],
    prompt: Prompt,
    rated: RatedColumns,
    roles: dict[str, tuple[str, ...]],
    user: str | None,
    itemised: bool,
) -> RatedFormat:
    """Return the format of rows of one answer, or of one item of another file."""
    column, ranked = _rating_column(known, rated)
    answer = rated.item if itemised else rated.text or _first(_TEXTS, known)
    if answer is None:
        raise DataError(
            f"there is no answer in the columns {', '.join(known)}",
            "name the column of its text with --text, or the file of the items with --items",
        )
    if not itemised and any(isinstance(record.get(answer), (list, dict)) for record in sample):
        prompt = replace(prompt, listed=True)
    prompt = _listed(prompt, sample)
    ask = _asker(prompt, rated, None if itemised else answer)

    def read(row: Record) -> list[Rating | str]:
        value = _number(row, column, ranked)
        if itemised:
            key = name_of(row.get(answer))
            if key is None:
                raise Unusable(f"no {answer}")
            return [Rating(ask(row)[0], key, value, _user(row, user))]
        asked, text = ask(row)
        return [Rating(asked, text, value, _user(row, user))]

    used = {"item" if itemised else "answer": (answer,), "rank" if ranked else "rating": (column,)}
    return RatedFormat("ratings", prompt.format, read, {**prompt.roles, **used, **roles}, ranked)


def _several(
    where: _List,
    sample: Sequence[Record],
    prompt: Prompt,
    rated: RatedColumns,
    roles: dict[str, tuple[str, ...]],
    user: str | None,
) -> RatedFormat:
    """Return the format of rows of several answers."""
    prompt = _listed(prompt, sample)
    ask = _asker(prompt, rated, where.column)

    def read(row: Record) -> list[Rating | str]:
        answers = row.get(where.column)
        numbers = row.get(where.ratings) if where.text is None else answers
        if not isinstance(answers, (list, tuple)) or not answers:
            return [f"no {where.column}"]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != len(answers):
            return [f"not as many {where.ratings} as {where.column}"]
        found: list[Rating | str] = []
        for answer, number in zip(answers, numbers):
            try:
                found.append(_one(row, answer, number))
            except Unusable as error:
                found.append(str(error))
        return found

    def _one(row: Record, answer: Any, number: Any) -> Rating:
        if where.text is not None:
            if not isinstance(answer, dict):
                raise Unusable(f"an element of {where.column} is not an object")
            answer, number = _inside(answer, where.text), _inside(number, where.ratings)
        value = finite(number, where.ratings)
        asked, text = ask({**row, where.column: answer})
        return Rating(asked, text, -value if where.ranked else value, _user(row, user))

    inner = f"{where.column}." if where.text is not None else ""
    used = {
        "answers": (inner + where.text if where.text is not None else where.column,),
        "rank" if where.ranked else "rating": (inner + where.ratings,),
    }
    name = "ranked lists" if where.ranked else "rated lists"
    return RatedFormat(name, prompt.format, read, {**prompt.roles, **used, **roles}, where.ranked)


def _asker(
    prompt: Prompt, rated: RatedColumns, answer: str | None
) -> Callable[[Record], tuple[str, str]]:
    """Return the function that reads the prompt and, if it stands in the row, the answer."""
    fixed = rated.prompt_text
    if fixed is not None:
        return lambda row: (fixed, text_of(row, answer) if answer else "")
    # The reader of pairs reads the one answer twice; an item's text comes from elsewhere.
    name = answer or ""
    read = reader(prompt, (name, name))
    return lambda row: read(row if answer else {**row, "": ""})[:2]


def _listed(prompt: Prompt, sample: Sequence[Record]) -> Prompt:
    """Return the prompt, as messages if that is what its column holds."""
    values = [record.get(name) for record in sample for name in prompt.columns]
    if any(isinstance(value, (list, dict)) or looks_written(value) for value in values):
        return replace(prompt, listed=True)
    return prompt


def _objects(name: str, values: Sequence[Any], columns: RatedColumns) -> _List | None:
    if not all(isinstance(value, dict) for value in values):
        return None
    keys = dict.fromkeys(key for value in values for key in value)
    text = columns.text or _first(_TEXTS, keys)
    column, ranked = columns.rating or columns.rank, columns.rank is not None
    if column is None:
        column, ranked = _first(_RATINGS, keys), False
    if column is None:
        column, ranked = _first(_RANKS, keys), True
    if text is None or column is None or column.split(".")[0] not in keys or text not in keys:
        return None
    return _List(name, text, column, ranked)


def _parallel(
    name: str, values: Sequence[Any], record: Record, columns: RatedColumns
) -> _List | None:
    if not all(isinstance(value, str) for value in values) or columns.text not in (None, name):
        return None
    named = columns.rating or columns.rank
    for column in (named,) if named else (*_RATINGS, *_RANKS):
        numbers = record.get(column)
        if isinstance(numbers, (list, tuple)) and len(numbers) == len(values):
            ranked = columns.rank is not None or not named and column in _RANKS
            return _List(name, None, column, ranked)
    return None


def _rating_column(known: Mapping[str, None], rated: RatedColumns) -> tuple[str, bool]:
    if rated.rating and rated.rank:
        raise DataError("--rating and --rank are two judgments of one answer", "leave one out")
    if rated.rating or rated.rank:
        return rated.rating or rated.rank or "", rated.rank is not None
    found = [name for name in (*_RATINGS, *_RANKS) if name in known]
    if len(found) != 1:
        which = f"are several ratings ({', '.join(found)})" if found else "is no rating"
        raise DataError(
            f"there {which} in the columns {', '.join(known)}",
            "name it with --rating COLUMN, or with --rank COLUMN if 1 is the best",
        )
    return found[0], found[0] in _RANKS


def _require_known(
    known: Mapping[str, None],
    columns: Columns,
    rated: RatedColumns,
    several: _List | None,
    items: Sequence[Record] | None,
) -> None:
    """Raise ``DataError`` for a column that was named and is not there."""
    about = {**known, **{name: None for record in items or () for name in record}}
    names: list[tuple[str | None, Mapping[str, None]]] = [(n, about) for n in columns.named()]
    names.append((rated.item, known))
    if several is None:
        names += [(name, known) for name in (rated.rating, rated.rank)]
        names.append((rated.text, about))
    for name, where in names:
        if name is not None and name.split(".")[0] not in where:
            raise DataError(
                f"there is no column {name!r}", f"use one of: {', '.join(where) or 'none'}"
            )


def _number(row: Record, column: str, ranked: bool) -> float:
    value = finite(_inside(row, column), column)
    return -value if ranked else value


def _inside(value: Any, path: str) -> Any:
    """Return what a key, or several joined by points, leads to; None if to nothing."""
    if isinstance(value, dict) and path in value:
        return value[path]
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _user(row: Record, column: str | None) -> str | None:
    if column is None:
        return None
    try:
        return name_of(row.get(column))
    except Unusable as error:
        raise Unusable(f"{column} {error}") from None


def _first(names: Sequence[str], known: Mapping[str, None]) -> str | None:
    return next((name for name in names if name in known), None)


def checked(rating: Rating) -> Rating | str:
    """Return a rating, or why its texts cannot be used."""
    if not rating.prompt.strip():
        return "empty prompt"
    if not rating.answer.strip():
        return "empty answer"
    return rating if is_unicode(rating.prompt + rating.answer) else "not valid Unicode"
