"""What became of the rows of sources, whatever is read from them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from decdpo.data.ingest.files.sources import Record, short_names, stems, written
from decdpo.data.ingest.formats.pairs import Format
from decdpo.data.ingest.formats.rated import RatedFormat
from decdpo.data.ingest.opened import Opened, used_columns
from decdpo.data.ingest.reports.report import Drops
from decdpo.errors import DataError

_PROGRESS_SECONDS = 2.0


class Tally:
    """Counts the rows of one file after another, and what could not be used of them.

    into : what is kept of them; it grows. what : what that is: "pairs". wanted : columns whose
    values the partition and the hold-out need, by use, or None. progress : called every two seconds
    with how far reading is.

    rows : read so far. drops : what was not kept. files : a report on each file. known : the
    columns met.
    """

    def __init__(
        self,
        into: Sized,
        what: str,
        wanted: Mapping[str, str | None],
        progress: Callable[[str], None],
    ) -> None:
        self.wanted = wanted
        self.rows = 0
        self.drops = Drops()
        self.files: list[dict[str, Any]] = []
        self.known: dict[str, None] = {"file": None, "user": None}
        self._into, self._what = into, what
        self._kept_rows = 0
        self._progress, self._reported = progress, time.monotonic()

    def records(
        self, opened: Opened, form: Format | RatedFormat
    ) -> Iterator[tuple[int, Record | str]]:
        """Yield the records of a file with their rows, from 1, and count them.

        form : says what its columns are used for.
        """
        before, met = self.rows, dict[str, None]()
        for row, record in enumerate(opened.records(), 1):
            self.rows += 1
            if not isinstance(record, str) and not record.keys() <= met.keys():
                met.update(dict.fromkeys(record))
            kept = len(self._into)
            yield row, record
            self._kept_rows += len(self._into) > kept
            if time.monotonic() - self._reported > _PROGRESS_SECONDS:
                self._reported = time.monotonic()
                self._progress(f"read {self.rows:,} rows, kept {len(self._into):,} {self._what}")
        self.known.update(met)
        about = {"file": written(opened.path), "format": form.name, "rows": self.rows - before}
        self.files.append({**about, **used_columns(form.roles, self.wanted, met)})

    def require_any(self, more: str, remedy: str) -> None:
        """Raise ``DataError`` if nothing is kept: for want of a column, or with all reasons.

        more : what else to say of it. remedy : what to do.
        """
        if len(self._into):
            return
        for use, column in self.wanted.items():
            if column is not None and column not in self.known:
                raise DataError(
                    f"the sources have no column {column!r} for the {use}",
                    f"use one of: {', '.join(self.known)}",
                )
        drops = self.drops.summary()
        reasons = "; ".join(f"{reason}: {drop['count']}" for reason, drop in drops.items())
        what = self._what.removesuffix("s")
        raise DataError(
            f"no {what} is left of {self.drops.total} judgments ({reasons}){more}", remedy
        )

    def report(self) -> dict[str, Any]:
        """Return what became of the rows."""
        return {
            "sources": self.files,
            "rows_read": self.rows,
            "rows_kept": self._kept_rows,
            "judgments": len(self._into) + self.drops.total,
            "num_dropped": self.drops.total,
            "dropped": self.drops.summary(),
        }


def one_by_one(paths: Sequence[Path], first: Opened) -> Iterator[tuple[Opened, str, str]]:
    """Yield every source opened, its value of the column ``file``, and its name for messages.

    first : the first of ``paths``, which is open already.
    """
    for path, stem, name in zip(paths, stems(paths), short_names(paths)):
        yield first if path is first.path else Opened(path), stem, name
