"""The first pass: every record of every source into the pair store; what is lost is counted."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from decdpo.data.ingest.answers import verdicts_of
from decdpo.data.ingest.columns import Columns
from decdpo.data.ingest.formats import Format, judgments, recognise
from decdpo.data.ingest.opened import Opened, naming, used_columns, values_of
from decdpo.data.ingest.repeated import without_repeated_prompt
from decdpo.data.ingest.report import Drops, Labels
from decdpo.data.ingest.sources import Record, short_names, stems, written
from decdpo.data.ingest.spill import PairStore
from decdpo.data.ingest.verdicts import in_words
from decdpo.errors import DataError

_PROGRESS_SECONDS = 2.0


def read_sources(
    paths: Sequence[Path],
    first: Opened,
    store: PairStore,
    columns: Columns,
    partition: str | None,
    group: str | None,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], str]:
    """Read every source into ``store``.

    Parameters
    ----------
    first : the first of ``paths``, opened.
    partition, group : columns whose values the partition and the hold-out need, or None. A source
        has the columns ``file`` and ``user`` beside its own.
    progress : called every two seconds with how far it is.

    Returns
    -------
    The report so far, and the prompt format of all pairs.

    Raises ``DataError`` if a source cannot be read, holds no pair, or differs in prompt format.
    """
    reader = _Reader(store, columns, {"partition": partition, "group": group}, progress)
    for path, stem, name in zip(paths, stems(paths), short_names(paths)):
        store.start_file(name, reader.rows)
        opened = first if path is first.path else Opened(path)
        reader.read(opened, stem, name if len(paths) > 1 else "")
    return reader.report(), reader.prompt_format()


class _Reader:
    """Reads one file after another, and counts what became of their rows."""

    def __init__(
        self,
        store: PairStore,
        columns: Columns,
        wanted: dict[str, str | None],
        progress: Callable[[str], None],
    ) -> None:
        self.rows = 0
        self._store, self._columns, self._wanted = store, columns, wanted
        self._progress, self._spoke = progress, time.monotonic()
        self._drops, self._labels = Drops(), Labels()
        self._kept_rows = 0
        self._files: list[dict[str, Any]] = []
        self._formats: set[str] = set()
        self._known: dict[str, None] = {"file": None, "user": None}

    def read(self, opened: Opened, stem: str, name: str) -> None:
        """Read one file. stem : its value of the column ``file``. name : for messages, or ""."""
        path, sample = opened.path, opened.sample()
        with naming(path):
            form = recognise(opened.head, self._columns)
        form = without_repeated_prompt(form, sample, self._columns)
        met = dict.fromkeys(name for record in sample for name in record)
        cut, before = 0, self.rows
        for row, record in enumerate(opened.records(), 1):
            self.rows += 1
            if not isinstance(record, str) and not record.keys() <= met.keys():
                met.update(dict.fromkeys(record))
            cut += self._take(form, record, stem, (row, name))
            self._say()
        if form.answers is not None:
            with naming(path):
                form.answers.require_clear()
        self._known.update(met)
        self._formats.add(form.prompt_format)
        self._files.append(
            {
                "file": written(path),
                "format": form.name,
                "rows": self.rows - before,
                **used_columns(form.roles, self._wanted, met),
                "prompt_cut_off": cut,
            }
        )

    def _take(self, form: Format, record: Record | str, stem: str, place: tuple[int, str]) -> int:
        """Store the pairs of a record. Return how many had their prompt cut off the answers."""
        found = [record] if isinstance(record, str) else judgments(form, record, self._columns)
        if form.answers is not None and not isinstance(record, str):
            self._labels.add(verdicts_of(record, form.answers), form.answers)
        kept, cut = len(self._store), 0
        for item in found:
            if isinstance(item, str):
                self._drops.add(item, *place)
                continue
            values = values_of(record, item.user, stem, self._wanted)
            stored = not isinstance(values, str)
            fault = self._store.add(item, self.rows, *values) if stored else values
            if fault is not None:
                self._drops.add(str(fault), *place)
            cut += fault is None and item.prompt_cut_off
        self._kept_rows += len(self._store) > kept
        return cut

    def _say(self) -> None:
        if time.monotonic() - self._spoke > _PROGRESS_SECONDS:
            self._spoke = time.monotonic()
            self._progress(f"read {self.rows:,} rows, kept {len(self._store):,} pairs")

    def prompt_format(self) -> str:
        """Return the prompt format of all files. Raises ``DataError`` if they differ in it."""
        if len(self._formats) > 1:
            raise DataError(
                "the sources write prompts in different ways: "
                f"{', '.join(sorted(self._formats))}",
                "make one sharding of each",
            )
        return next(iter(self._formats))

    def report(self) -> dict[str, Any]:
        """Return what became of the rows. Raises ``DataError`` if no pair is left of them."""
        if not len(self._store):
            self._explain_nothing()
        return {
            "sources": self._files,
            "rows_read": self.rows,
            "rows_kept": self._kept_rows,
            "judgments": len(self._store) + self._drops.total,
            "pairs": len(self._store),
            "num_dropped": self._drops.total,
            "dropped": self._drops.summary(),
            "incomplete_columns": self._store.incomplete(),
            "labels": self._labels.summary(),
        }

    def _explain_nothing(self) -> None:
        for use, column in self._wanted.items():
            if column is not None and column not in self._known:
                raise DataError(
                    f"the sources have no column {column!r} for the {use}",
                    f"use one of: {', '.join(self._known)}",
                )
        drops = self._drops.summary()
        reasons = "; ".join(f"{reason}: {drop['count']}" for reason, drop in drops.items())
        met = [f"{label['label']!r} ({label['count']:,})" for label in self._labels.summary()]
        said = f"; the labels met are {in_words(met)}" if met else ""
        raise DataError(
            f"no pair is left of {self._drops.total} judgments ({reasons}){said}",
            "check the columns, or name them with --prompt, --chosen, --rejected, --answers, "
            "--label",
        )
