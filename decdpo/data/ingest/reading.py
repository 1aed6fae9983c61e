"""The first pass: every record of every source into the pair store; what is lost is counted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from decdpo.data.ingest.files.sources import Record
from decdpo.data.ingest.formats.answers import verdicts_of
from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.pairs import Format, judgments, recognise
from decdpo.data.ingest.formats.repeated import without_repeated_prompt
from decdpo.data.ingest.formats.verdicts import in_words
from decdpo.data.ingest.opened import Opened, naming, values_of
from decdpo.data.ingest.reports.report import Labels
from decdpo.data.ingest.spill import PairStore
from decdpo.data.ingest.tally import Tally, one_by_one
from decdpo.errors import DataError


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
    tally = Tally(store, "pairs", {"partition": partition, "group": group}, progress)
    reader = _Reader(store, columns, tally)
    for opened, stem, name in one_by_one(paths, first):
        store.start_file(name, tally.rows)
        reader.read(opened, stem, name if len(paths) > 1 else "")
    return reader.report(), reader.prompt_format()


class _Reader:
    """Reads one file after another, and counts what became of their rows."""

    def __init__(self, store: PairStore, columns: Columns, tally: Tally) -> None:
        self._store, self._columns, self._tally = store, columns, tally
        self._labels = Labels()
        self._formats: set[str] = set()

    def read(self, opened: Opened, stem: str, name: str) -> None:
        """Read one file. stem : its value of the column ``file``. name : for messages, or ""."""
        with naming(opened.path):
            form = recognise(opened.head, self._columns)
        form = without_repeated_prompt(form, opened.sample(), self._columns)
        cut = 0
        for row, record in self._tally.records(opened, form):
            cut += self._take(form, record, stem, (row, name))
        self._tally.files[-1]["prompt_cut_off"] = cut
        if form.answers is not None:
            with naming(opened.path):
                form.answers.require_clear()
        self._formats.add(form.prompt_format)

    def _take(self, form: Format, record: Record | str, stem: str, place: tuple[int, str]) -> int:
        """Store the pairs of a record. Return how many had their prompt cut off the answers."""
        found = [record] if isinstance(record, str) else judgments(form, record, self._columns)
        if form.answers is not None and not isinstance(record, str):
            self._labels.add(verdicts_of(record, form.answers), form.answers)
        cut = 0
        for item in found:
            if isinstance(item, str):
                self._tally.drops.add(item, *place)
                continue
            values = values_of(record, item.user, stem, self._tally.wanted)
            stored = not isinstance(values, str)
            fault = self._store.add(item, self._tally.rows, *values) if stored else values
            if fault is not None:
                self._tally.drops.add(str(fault), *place)
            cut += fault is None and item.prompt_cut_off
        return cut

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
        labels = self._labels.summary()
        met = [f"{label['label']!r} ({label['count']:,})" for label in labels]
        self._tally.require_any(
            f"; the labels met are {in_words(met)}" if met else "",
            "check the columns, or name them with --prompt, --chosen, --rejected, --answers, "
            "--label",
        )
        return {
            **self._tally.report(),
            "pairs": len(self._store),
            "incomplete_columns": self._store.incomplete(),
            "labels": labels,
        }
