"""Source files to records, one at a time: JSON lines, JSON arrays, CSV, TSV, Parquet, gzip or not.

What a file is is read from its first bytes, never from its name.
"""

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decdpo.errors import DataError, EnvironmentFault

Record = dict[str, Any]

_CHUNK = 1 << 20
_LARGEST_RECORD = 1 << 26
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_RECOGNISED = "give .jsonl, .json, .csv, .tsv (each may be gzipped) or .parquet files in UTF-8"


def stems(paths: Sequence[Path]) -> list[str]:
    """Return what the column ``file`` says of each file: its name up to the first dot.

    Files that would share a name are told apart by their whole path.
    """
    short = [path.name.split(".")[0] for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return what messages and shards call each file: its name, or its path from where all lie.

    The path from the common folder tells files of one name apart wherever the data are kept.
    """
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    whole = [os.path.abspath(path) for path in paths]
    return [os.path.relpath(path, os.path.commonpath(whole)) for path in whole]


def records(path: Path) -> Iterator[Record | str]:
    """Yield the records of one file in order; a string says why there is none in that place.

    Memory use does not grow with the file (a Parquet file: with its row groups).

    Raises ``DataError`` if the file is missing, empty, damaged, or of no known kind;
    ``EnvironmentFault`` if a Parquet file is given and pyarrow is not installed.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder", "give the files in it")
        if not path.exists():
            raise DataError(f"there is no file {path}", "check the path of the source")
        with _bytes(path) as stream:
            head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"PAR1"):
            yield from _parquet(path)
        elif not head:
            raise DataError(f"{path} is empty", "give a file with at least one record")
        elif b"\x00" in head:
            raise DataError(f"{path} is a binary file of no known kind", _RECOGNISED)
        else:
            read = {b"[": _json_array, b"{": _json_lines}.get(head[:1], _table)
            with io.TextIOWrapper(_bytes(path), "utf-8-sig", newline="\n") as text:
                yield from read(path, text)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "check the file, or fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}", _RECOGNISED) from error


def _bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")


def _json_lines(path: Path, text: io.TextIOWrapper) -> Iterator[Record | str]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: not a JSON object on one line ({error})",
                "check whether the file is cut off; a document over many lines must be an array",
            ) from error
        yield value if isinstance(value, dict) else "not an object"


def _json_array(path: Path, text: io.TextIOWrapper) -> Iterator[Record | str]:
    decode = json.JSONDecoder().raw_decode
    buffer, position, number = text.read(_CHUNK), 0, 1
    position = buffer.index("[") + 1
    while True:
        gap = _BETWEEN.match(buffer, position)
        assert gap is not None, "the pattern matches nothing at all, too"
        position = gap.end()
        if buffer.startswith("]", position):
            return
        try:
            value, end = decode(buffer, position)
        except (ValueError, RecursionError) as error:
            buffer, position = buffer[position:], 0
            # Reading as much again as there is keeps the work linear in the record's length.
            more = "" if len(buffer) > _LARGEST_RECORD else text.read(max(_CHUNK, len(buffer)))
            if more and not isinstance(error, RecursionError):
                buffer += more
                continue
            raise DataError(
                f"{path}, element {number} of the array: {error}",
                "check whether the file is cut off",
            ) from error
        yield value if isinstance(value, dict) else "not an object"
        number, position = number + 1, end


def _table(path: Path, text: io.TextIOWrapper) -> Iterator[Record | str]:
    header = text.readline()
    delimiter = "\t" if header.count("\t") > header.count(",") else ","
    # The csv module's own limit of 128 KiB a cell is below the length of real dialogues.
    csv.field_size_limit(_LARGEST_RECORD)
    try:
        names = next(csv.reader([header], delimiter=delimiter))
        if len(names) < 2 or len(set(names)) < len(names):
            raise DataError(f"{path} has no table header: {header.strip()[:80]!r}", _RECOGNISED)
        for cells in csv.reader(text, delimiter=delimiter, strict=True):
            if cells:
                fits = len(cells) == len(names)
                yield dict(zip(names, cells)) if fits else "not as many cells as the header"
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}", "check its quotes") from error


def _parquet(path: Path) -> Iterator[Record | str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise EnvironmentFault(
            f"{path} is a Parquet file, which needs pyarrow",
            "install it with `pip install decdpo[parquet]`",
        ) from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DataError(f"{path} cannot be read: {error}", "fetch the file again") from error
