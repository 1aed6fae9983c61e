"""Tables to records: values separated by commas, tabs or semicolons, with a header."""

import csv
from collections.abc import Iterator
from pathlib import Path

from decdpo.data.ingest.files.streams import LARGEST_RECORD, Text
from decdpo.errors import DataError

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_QUOTES = "a quote inside a quoted cell is written twice; or save the table as JSON lines"


def table_records(text: Text, head: bytes) -> Iterator[dict[str, str] | str]:
    """Yield the rows as records; a string says why a row is none.

    head : the first bytes of the file, from which the delimiter is known: the one that gives the
        header most cells.

    Raises ``DataError`` with line and row if there is no header, a quote is not closed, or a quoted
    cell holds whole rows of a table of tabs.
    """
    # The csv module's own limit of 128 KiB a cell is below the length of real dialogues.
    csv.field_size_limit(LARGEST_RECORD)
    start = head.decode("utf-8", errors="ignore").removeprefix("\ufeff")
    if "\r" in start and "\n" not in start:
        raise DataError(
            f"{text.path} ends its lines with carriage returns alone",
            "convert it: tr '\\r' '\\n'",
        )
    delimiter = _delimiter(start)
    names: list[str] = []
    for row, cells in _rows(text, delimiter):
        if not names:
            _require_names(text.path, cells)
            names = cells
        elif len(cells) != len(names):
            yield "not as many cells as the header"
        else:
            if delimiter == "\t" and _swallowed(cells):
                raise DataError(
                    f"{row}: a quoted cell holds line breaks and the tabs of whole rows, which a "
                    "single stray quote makes it do",
                    _QUOTES,
                )
            yield dict(zip(names, cells))


def _rows(text: Text, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the cells of each row that is not empty, the header first."""
    reader = csv.reader(text.lines(), delimiter=delimiter, strict=True)
    number = 0
    while True:
        before = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _fault(text.path, error, before + 1, reader.line_num, number) from None
        if cells:
            yield f"{text.path}, line {before + 1} (row {number})", cells
            number += 1


def _fault(path: Path, error: csv.Error, first: int, last: int, row: int) -> DataError:
    what, remedy = str(error), _QUOTES
    if "unexpected end" in what or "field limit" in what:
        what = "a quote is opened in this row and not closed"
    elif "new-line character" in what:
        what, remedy = "a carriage return in a cell that is not quoted", "quote the cell"
    upto = f" to {last}" if last > first else ""
    where = f"line {first}{upto} (row {row})" if row else f"line {first}{upto} (the header)"
    return DataError(f"{path}, {where}: {what}", remedy)


def _delimiter(start: str) -> str:
    """Return the delimiter that gives the header most cells, if possible without faulty quotes."""
    for strict in (True, False):
        cells = {mark: _cells(start, mark, strict) for mark in _DELIMITERS}
        if max(cells.values()) > 1:
            break
    return max(cells, key=lambda mark: cells[mark])


def _cells(start: str, delimiter: str, strict: bool) -> int:
    try:
        return len(next(csv.reader(start.splitlines(True), delimiter=delimiter, strict=strict)))
    except (csv.Error, StopIteration):
        return 0


def _require_names(path: Path, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if len(names) > 1 and twice is not None:
        raise DataError(
            f"{path}: the header names column {twice!r} twice", "give every column its own name"
        )
    if len(names) < 2:
        marks = ", ".join(_DELIMITERS.values())
        raise DataError(
            f"{path} has no table header: its first row is {' '.join(names)[:80]!r}",
            "give .jsonl, .json, .csv, .tsv, .parquet or .arrow files in UTF-8; the cells of "
            f"tables are separated by {marks}",
        )


def _swallowed(cells: list[str]) -> bool:
    """Say whether a cell holds rows that a stray quote made part of it.

    The pieces of a row that was cut at the quote then have just the tabs that the row lacks.
    """
    for place, cell in enumerate(cells):
        first, *inner = cell.split("\n")
        if inner and "\t" in cell:
            last = inner.pop()
            after = len(cells) - 1 - place
            if first.count("\t") == after and last.count("\t") == place:
                return True
            if any(line.count("\t") == len(cells) - 1 for line in inner):
                return True
    return False
