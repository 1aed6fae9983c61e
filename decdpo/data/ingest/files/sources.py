"""Source files to records, one at a time: JSON, tables, Parquet and Arrow, packed or not.

What a file is is read from its first bytes, never from its name, and each file is read once.
"""

import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decdpo.data.ingest.files.arrow import arrow_records, parquet_records
from decdpo.data.ingest.files.json_values import json_records
from decdpo.data.ingest.files.streams import HEAD, Text, peek, require_utf8, unpacked
from decdpo.data.ingest.files.tables import table_records
from decdpo.errors import DataError
from decdpo.files import reason

Record = dict[str, Any]

_KNOWN = (
    "give .jsonl, .json, .csv, .tsv (each may be packed with gzip, bzip2, xz or zstd), .parquet or "
    ".arrow files, text in UTF-8"
)
# First bytes of what is met in place of data: what it is, and what to do about it.
_NOT_DATA = {
    b"version https://git-lfs.github.com/spec/": (
        "is a Git LFS pointer, not the data",
        "fetch the data: git lfs pull",
    ),
    b"/annex/objects/": ("is a git-annex pointer, not the data", "fetch it: git annex get"),
    b"<!doctype html": ("is a web page, not data", "fetch the raw file"),
    b"<html": ("is a web page, not data", "fetch the raw file"),
    b"PK\x03\x04": ("is a zip archive", "unpack it: unzip"),
    b"PARE": ("is an encrypted Parquet file", "give it decrypted"),
    b"\x89HDF": ("is an HDF5 file", _KNOWN),
    b"\x80\x04": ("is a pickle, which is never read", _KNOWN),
    b"\x80\x05": ("is a pickle, which is never read", _KNOWN),
    b"SQLite format 3": ("is an SQLite database", _KNOWN),
}


def stems(paths: Sequence[Path]) -> list[str]:
    """Return what the column ``file`` says of each file: its name up to the first dot.

    Files that would share a name are distinguished by their whole path.
    """
    short = [path.name.split(".")[0] for path in paths]
    return [
        written(name if short.count(name) == 1 else path) for name, path in zip(short, paths)
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return what messages and shards call each file: its name, or its path from where all lie.

    The path from the common folder tells files of one name apart wherever the data are kept.
    """
    if len({path.name for path in paths}) == len(paths):
        return [written(path.name) for path in paths]
    whole = [os.path.abspath(path) for path in paths]
    return [written(os.path.relpath(path, os.path.commonpath(whole))) for path in whole]


def written(path: Path | str) -> str:
    """Return a path as it can be written in UTF-8: other bytes in it are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def records(path: Path) -> Iterator[Record | str]:
    """Yield the records of one file in order; a string says why there is none in that place.

    Memory use does not grow with the file (a Parquet file: with its row groups). A pipe is read
    from its beginning to its end.

    Raises ``DataError`` with the place if the file is missing, empty, damaged, or of no known kind;
    ``EnvironmentFault`` if it needs pyarrow, which is not installed.
    """
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder", "give the files in it")
    rows = 0
    try:
        with unpacked(path) as packed:
            head, stream = peek(packed, HEAD)
            with stream:
                for record in _parsed(path, head, stream):
                    rows += 1
                    yield record
    except FileNotFoundError:
        remedy = "check the path of the source; a name on the Hugging Face hub needs --hub"
        raise DataError(f"there is no file {path}", remedy) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        after = f" after row {rows}" if rows else ""
        raise DataError(
            f"{path} cannot be read{after}: {reason(error)}", "check the file, or fetch it again"
        ) from error


def _parsed(path: Path, head: bytes, stream: Any) -> Iterator[Record | str]:
    require_utf8(path, head)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\x1e")
    for mark, (what, remedy) in _NOT_DATA.items():
        if start[: len(mark)].lower() == mark.lower():
            raise DataError(f"{path} {what}", remedy)
    if start.startswith(b"PAR1"):
        return parquet_records(path)
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return arrow_records(path, head, stream)
    if not start:
        raise DataError(f"{path} is empty", "give a file with at least one record")
    if b"\x00" in head:
        raise DataError(f"{path} is a binary file of no known kind", _KNOWN)
    text = Text(path, stream)
    return json_records(text) if start[:1] in (b"[", b"{") else table_records(text, head)
