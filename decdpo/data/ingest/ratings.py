"""The first pass over rated answers: every rating in memory as numbers, every text once on disk."""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decdpo.data.ingest.columns import Columns
from decdpo.data.ingest.items import Items
from decdpo.data.ingest.opened import Opened, naming, used_columns, values_of
from decdpo.data.ingest.rated import RatedColumns, RatedFormat, Rating, checked, recognise_rated
from decdpo.data.ingest.report import Drops
from decdpo.data.ingest.sources import Record, short_names, stems, written
from decdpo.data.ingest.spill import Names
from decdpo.data.ingest.texts import Texts
from decdpo.data.ingest.values import Unusable, name_of
from decdpo.errors import DataError

_PROGRESS_SECONDS = 2.0


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
    reader = _Reader(ratings, columns, rated, items, wanted, progress)
    for path, stem, name in zip(paths, stems(paths), short_names(paths)):
        ratings.files.append((name, reader.rows))
        opened = first if path is first.path else Opened(path)
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
        wanted: dict[str, str | None],
        progress: Callable[[str], None],
    ) -> None:
        self.rows = 0
        self._ratings, self._columns, self._rated, self._wanted = ratings, columns, rated, wanted
        self._items = Items(items) if items is not None else None
        self._loaded = False
        self._progress, self._spoke = progress, time.monotonic()
        self._drops, self._kept_rows = Drops(), 0
        self._files: list[dict[str, Any]] = []
        self._formats: dict[str, None] = {}
        self._ranked: set[bool] = set()
        self._known: dict[str, None] = {"file": None, "user": None}

    def read(self, opened: Opened, stem: str, name: str) -> None:
        """Read one file. stem : its value of the column ``file``. name : for messages, or ""."""
        sample, rated = opened.sample(), self._rated
        with naming(opened.path):
            if self._items is not None:
                rated = self._items.find_columns(sample, rated)
            head = self._items.head if self._items else None
            form = recognise_rated(sample, self._columns, rated, head)
        if self._items is not None and not self._loaded:
            prompts = form.roles.get("prompt", ())
            known = {column for record in sample for column in record}
            others = [c for c in (*prompts, *self._wanted.values()) if c and c not in known]
            self._items.load(self._ratings.answers, others)
            self._loaded = True
        met: dict[str, None] = {}
        before = self.rows
        for row, record in enumerate(opened.records(), 1):
            self.rows += 1
            if not isinstance(record, str) and not record.keys() <= met.keys():
                met.update(dict.fromkeys(record))
            self._take(form, record, rated.item, stem, (row, name))
            self._say()
        self._known.update(met)
        if self._items is not None:
            self._known.update(dict.fromkeys(c for record in self._items.head for c in record))
        self._formats[form.prompt_format] = None
        self._ranked.add(form.ranked)
        about = used_columns(form.roles, self._wanted, met)
        count = self.rows - before
        self._files.append(
            {"file": written(opened.path), "format": form.name, "rows": count, **about}
        )

    def _take(
        self,
        form: RatedFormat,
        record: Record | str,
        item: str | None,
        stem: str,
        place: tuple[int, str],
    ) -> None:
        kept = len(self._ratings)
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
                self._drops.add(fault, *place)
        self._kept_rows += len(self._ratings) > kept

    def _add(self, rating: Rating, record: Record | str, stem: str) -> str | None:
        """Store a rating; return why it cannot be used, or None."""
        good = checked(rating)
        if isinstance(good, str):
            return good
        values = values_of(record, rating.user, stem, self._wanted)
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
        into.rows.append(self.rows)
        into.users.add(rating.user or "")
        into.keys.add(values[0])
        into.groups.add(values[1])
        return None

    def _say(self) -> None:
        if time.monotonic() - self._spoke > _PROGRESS_SECONDS:
            self._spoke = time.monotonic()
            self._progress(f"read {self.rows:,} rows, kept {len(self._ratings):,} ratings")

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
        for use, column in self._wanted.items():
            if column is not None and column not in self._known:
                raise DataError(
                    f"the sources have no column {column!r} for the {use}",
                    f"use one of: {', '.join(self._known)}",
                )
        drops = self._drops.summary()
        if not len(self._ratings):
            reasons = "; ".join(f"{reason}: {drop['count']}" for reason, drop in drops.items())
            raise DataError(
                f"no rating is left of {self._drops.total} ({reasons})",
                "check the columns, or name them with --prompt, --item, --text, --rating, --rank",
            )
        files = list(self._files)
        if self._items is not None:
            files.append(self._items.report())
        return {
            "sources": files,
            "rows_read": self.rows,
            "rows_kept": self._kept_rows,
            "judgments": len(self._ratings) + self._drops.total,
            "num_dropped": self._drops.total,
            "dropped": drops,
            "incomplete_columns": {},
            "labels": [],
        }
