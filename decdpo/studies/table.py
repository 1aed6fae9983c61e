"""The tidy table of a study: one row per cell and record, in a CSV file and for its claims."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from decdpo.errors import DecdpoError
from decdpo.files import replacing

Row = dict[str, Any]


class Missing(DecdpoError):
    """A number that a claim needs and no finished cell has."""


class Table:
    """Rows of labels and numbers.

    rows : each has the labels of its cell, "seed", and what was measured; training cells also have
    "round". columns : the union of the rows' keys, in order of appearance.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def where(self, labels: Mapping[str, Any] | None = None, **more: Any) -> "Table":
        """Return the rows whose columns have these values."""
        wanted = {**(labels or {}), **more}
        return Table(r for r in self.rows if all(r.get(k) == v for k, v in wanted.items()))

    def above(self, column: str, least: float) -> "Table":
        """Return the rows where a column has a value of at least ``least``."""
        return Table(r for r in self.rows if r.get(column) is not None and r[column] >= least)

    def values(self, column: str) -> list[Any]:
        """Return the different values of a column, in order of appearance."""
        return list(dict.fromkeys(row[column] for row in self.rows if row.get(column) is not None))

    def final(self) -> "Table":
        """Return the last round of every cell, and all rows that have no round."""
        last: dict[str, Row] = {}
        for row in self.rows:
            if "round" in row:
                last[row["cell"]] = row
        return Table(row for row in self.rows if "round" not in row or last[row["cell"]] is row)

    def by_seed(self, y: str) -> dict[int, float]:
        """Return {seed: y} of a selection that holds one row per seed.

        Raises ``Missing`` if it is empty.
        """
        found = {row["seed"]: float(row[y]) for row in self.rows if row.get(y) is not None}
        if not found:
            raise Missing(f"no finished cell has {y} here")
        return found

    def curve(self, x: str, y: str) -> list[tuple[float, list[float]]]:
        """Return (x, values of y over the seeds) for every x, ascending."""
        found: dict[float, list[float]] = {}
        for row in self.rows:
            if row.get(x) is not None and row.get(y) is not None:
                found.setdefault(row[x], []).append(float(row[y]))
        return sorted(found.items())

    def write(self, path: Path, columns: Sequence[str] | None = None) -> None:
        """Write a CSV file, numbers with all their digits; an absent value is an empty field."""
        with replacing(path, mode=0o644) as partial, partial.open("w", newline="") as stream:
            writer = csv.DictWriter(
                stream, columns or self.columns, extrasaction="ignore", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(self.rows)
