"""The first pass over rated answers: every rating in memory as numbers, every text once on disk."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decdpo.data.ingest.files.sources import Record
from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.items import Items
from decdpo.data.ingest.formats.rated import (
    RatedColumns,
    RatedFormat,
    Rating,
    checked,
    recognise_rated,
)
from decdpo.data.ingest.formats.values import Unusable, name_of
from decdpo.data.ingest.opened import Opened, naming, values_of
from decdpo.data.ingest.spill import Names
from decdpo.data.ingest.tally import Tally, one_by_one
from decdpo.data.ingest.texts import Texts
from decdpo.errors import DataError


@dataclass
class Ratings:
    """m ratings of answers by people; one person rates an answer to a prompt once.

    prompts, answers : the texts. files : the files, each with the rows before it. The other
    fields have an entry for each rating: row of the source from 1 over all files, value, numbers of
    prompt and answer, user, and the values of the partition's and the hold-out's column.
    """

    prompts: Texts
    answers: Texts
    files: list[tuple[str, int]] = field(default_factory=list)
    rows: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))
    prompt: array = field(default_factory=lambda: array("i"))
    answer: array = field(default_factory=lambda: array("i"))
    users: Names = field(default_factory=Names)
    keys: Names = field(default_factory=Names)
    groups: Names = field(default_factory=Names)

    def __len__(self) -> int:
        return len(self.rows)

    def drop_repeated(self) -> np.ndarray:
        """Return the (m,) bool mask of the first rating of each person, prompt and answer."""
        keys = np.stack(
            [self.users.codes, np.array(self.prompt), np.array(self.answer)], axis=1
        ).astype(np.int64)
        _, first = np.unique(keys, axis=0, return_index=True)
        kept = np.zeros(len(self), bool)
        kept[first] = True
        return kept

    def close(self) -> None:
        """Give the disk space back."""
        self.prompts.close()
        self.answers.close()


def read_ratings(
    paths: Sequence[Path],
    first: Opened,
    ratings: Ratings,
    columns: Columns,
    rated: RatedColumns,
    items: Path | None,
    wanted: dict[str, str | None],
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], str]:
    """Read every source into ``ratings``.

    Parameters
    ----------
    first : the first of ``paths``, opened. items : file of the items' texts, or None.
    wanted : columns whose values the partition and the hold-out need, by use, or None. A rating has
        the columns ``file``, ``user`` and those of its item beside its own.
    progress : called every two seconds with how far it is.

    Returns
    -------
    The report so far, and the prompt format of all pairs.

    Raises ``DataError`` if a source cannot be read or holds no rating, or sources differ in how
    they write prompts.
    """
    tally = Tally(ratings, "ratings", wanted, progress)
    reader = _Reader(ratings, columns, rated, items, tally)
    for opened, stem, name in one_by_one(paths, first):
        ratings.files.append((name, tally.rows))
        reader.read(opened, stem, name if len(paths) > 1 else "")
    return reader.report(), reader.prompt_format()


class _Reader:
    """Reads one file after another, and counts what became of their ratings."""

    def __init__(
        self,
        ratings: Ratings,
        columns: Columns,
        rated: RatedColumns,
        items: Path | None,
        tally: Tally,
    ) -> None:
        self._ratings, self._columns, self._rated, self._tally = ratings, columns, rated, tally
        self._items = Items(items) if items is not None else None
        self._loaded = False
        self._formats: set[str] = set()
        self._ranked: set[bool] = set()

    def read(self, opened: Opened, stem: str, name: str) -> None:
        """Read one file. stem : its value of the column ``file``. name : for messages, or ""."""
        sample, rated = opened.sample(), self._rated
        with naming(opened.path):
            if self._items is not None:
                rated = self._items.find_columns(sample, rated)
            head = self._items.head if self._items is not None else None
            form = recognise_rated(sample, self._columns, rated, head)
        if self._items is not None and not self._loaded:
            prompts = form.roles.get("prompt", ())
            known = {column for record in sample for column in record}
            others = [c for c in (*prompts, *self._tally.wanted.values()) if c and c not in known]
            self._items.load(self._ratings.answers, others)
            self._loaded = True
        for row, record in self._tally.records(opened, form):
            self._take(form, record, rated.item, stem, (row, name))
        if self._items is not None:
            self._tally.known.update(dict.fromkeys(c for r in self._items.head for c in r))
        self._formats.add(form.prompt_format)
        self._ranked.add(form.ranked)

    def _take(
        self,
        form: RatedFormat,
        record: Record | str,
        item: str | None,
        stem: str,
        place: tuple[int, str],
    ) -> None:
        found: Sequence[Rating | str]
        try:
            if isinstance(record, str):
                raise Unusable(record)
            if self._items is not None and item is not None:
                record = {**self._items.about(name_of(record.get(item))), **record}
            found = form.read(record)
        except Unusable as error:
            found = [str(error)]
        for rating in found:
            fault = rating if isinstance(rating, str) else self._add(rating, record, stem)
            if fault is not None:
                self._tally.drops.add(fault, *place)

    def _add(self, rating: Rating, record: Record | str, stem: str) -> str | None:
        """Store a rating; return why it cannot be used, or None."""
        good = checked(rating)
        if isinstance(good, str):
            return good
        values = values_of(record, rating.user, stem, self._tally.wanted)
        if isinstance(values, str):
            return values
        into = self._ratings
        try:
            if self._items is None:
                answer = into.answers.add(rating.answer)
            else:
                answer = self._items.code(rating.answer)
        except Unusable as error:
            return str(error)
        into.prompt.append(into.prompts.add(rating.prompt))
        into.answer.append(answer)
        into.values.append(rating.value)
        into.rows.append(self._tally.rows)
        into.users.add(rating.user or "")
        into.keys.add(values[0])
        into.groups.add(values[1])
        return None

    def prompt_format(self) -> str:
        """Return the prompt format of all files. Raises ``DataError`` if they differ in it."""
        for kind, found in (("prompts", self._formats), ("ratings and ranks", self._ranked)):
            if len(found) > 1:
                raise DataError(
                    f"the sources write {kind} in different ways", "make one sharding of each"
                )
        return next(iter(self._formats))

    def report(self) -> dict[str, Any]:
        """Return what became of the rows. Raises ``DataError`` if no rating is left of them."""
        self._tally.require_any(
            "", "check the columns, or name them with --prompt, --item, --text, --rating, --rank"
        )
        if self._items is not None:
            self._tally.files.append(self._items.report())
        return {**self._tally.report(), "incomplete_columns": {}, "labels": []}
