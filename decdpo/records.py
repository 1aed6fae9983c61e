"""Files of one JSON record a line, such as ``metrics.jsonl``, that show every change of a byte.

The last field of a line's last object (``system`` of a record) is ``crc``: the CRC-32 of the line
without it, continued from that of the line before. So a line that was changed, removed, doubled or
moved is found by those after it, and a file cut short by the checkpoint, which keeps a ``Mark``.
Lines without ``crc``, as earlier versions wrote them, are read as they are.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decdpo.errors import DataError
from decdpo.files import open_regular, os_fault, parse_json, replacing

_CRC = re.compile(rb', "crc": "([0-9a-f]{8})"(\}{1,2})$')
_LONGEST = 1 << 28
"""Bytes of the longest line that is read."""
_REMEDY = (
    "restore the file, or move it away: a resumed run records from its checkpoint on without it"
)


@dataclass(frozen=True)
class Mark:
    """How far a file has been written: the round of its last record, and the CRC-32 up to it."""

    round: int = 0
    crc: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the mark as JSON values, for a checkpoint."""
        return {"round": self.round, "crc": f"{self.crc:08x}"}

    @classmethod
    def from_json(cls, value: Any) -> "Mark | None":
        """Return the mark that ``to_json`` wrote, None for anything else."""
        if not isinstance(value, Mapping) or type(value.get("round")) is not int:
            return None
        crc = value.get("crc")
        if not isinstance(crc, str) or not re.fullmatch("[0-9a-f]{8}", crc):
            return None
        return cls(value["round"], int(crc, 16))


class Writer:
    """Appends records to a file."""

    def __init__(self, path: Path) -> None:
        found = list(_lines(path)) if path.exists() else []
        self.mark = found[-1].mark if found else Mark()
        self._file = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, which ends with an object that is not empty, and flush it."""
        line, crc = seal(record, self.mark.crc)
        self._file.write(line)
        self._file.flush()
        self.mark = Mark(record["round"], crc)

    def sync(self) -> None:
        """Force the records to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def take_over(path: Path, start: int, last: Mapping[str, Any]) -> Writer:
    """Go on with a file in the place of a process that is lost, which may have torn its last line.

    start : the round before which there is no record of this start. last : the newest record that
    all processes have made, which that one may not have written; empty for none.
    """
    keep_until(path, max(start, last.get("round", 0)))
    writer = Writer(path)
    if last and (writer.mark.round < last["round"] or not path.stat().st_size):
        writer.write(last)
    return writer


def seal(record: Mapping[str, Any], before: int) -> tuple[bytes, int]:
    """Return the line of a record, and its CRC-32 continued from ``before``."""
    text = json.dumps(record).encode()
    end = b"}}" if text.endswith(b"}}") else b"}"
    crc = zlib.crc32(text, before)
    return text[: -len(end)] + b', "crc": "%08x"' % crc + end + b"\n", crc


@dataclass(frozen=True)
class _Line:
    """One line: its bytes, its record without the checksum, whether it had one, the mark after."""

    raw: bytes
    record: dict[str, Any]
    sealed: bool
    mark: Mark


_NOTHING = _Line(b"", {}, False, Mark(-1))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file in order; a torn last line is left out.

    Raises ``DataError`` if the file cannot be read, a line is no record, or does not match its
    checksum.
    """
    return [line.record for line in _lines(path)]


def last_round(path: Path) -> int:
    """Return the round of the last record that can be read, 0 without one."""
    last = 0
    with suppress(DataError):
        for line in _lines(path):
            last = line.mark.round
    return last


def keep_until(path: Path, last_round: int, mark: Mark | None = None) -> None:
    """Drop the records after ``last_round`` and any torn last line, by an atomic rewrite.

    mark : what the checkpoint says of the file. Damage after it is dropped like any later record.

    Raises ``DataError`` if an earlier line is no record, or the file is not what the mark says.
    """
    if not path.exists():
        return
    kept, last = [], Mark()
    lines = _lines(path)
    while mark is None or last != mark:
        line = next(lines, None)
        if line is None or line.mark.round > last_round:
            break
        kept.append(line.raw)
        last = line.mark
    if mark is not None and last != mark:
        raise DataError(
            f"{path} is not what it was at the checkpoint of round {last_round}: its records end "
            f"with round {last.round} and CRC {last.crc:08x}, saved were round {mark.round} and "
            f"CRC {mark.crc:08x}",
            _REMEDY,
        )
    with replacing(path, mode=0o644) as spare:
        spare.write_bytes(b"".join(kept))


def _lines(path: Path) -> Iterator[_Line]:
    """Yield the lines of a file, checked; a last line without its end is left out."""
    line = _NOTHING
    try:
        with open_regular(path) as file:
            number = 0
            while raw := file.readline(_LONGEST):
                number += 1
                if not raw.endswith(b"\n"):
                    if len(raw) < _LONGEST:
                        return
                    raise _no_record(path, number)
                line = _line(path, number, raw, line)
                yield line
    except OSError as fault:
        raise os_fault(
            fault, f"{path} cannot be read", remedy="give the folder of a run", kind=DataError
        ) from None


def _line(path: Path, number: int, raw: bytes, before: _Line) -> _Line:
    text = raw[:-1]
    found = _CRC.search(text)
    crc = zlib.crc32(text[: found.start()] + found[2] if found else text, before.mark.crc)
    if crc != int(found[1], 16) if found else before.sealed:
        raise DataError(
            f"{path}, line {number} does not match its checksum: it was changed, or a line before "
            "it was changed, removed or moved",
            _REMEDY,
        )
    try:
        record = parse_json(text)
    except ValueError:
        raise _no_record(path, number) from None
    if not isinstance(record, dict) or type(record.get("round")) is not int:
        raise _no_record(path, number)
    round = record["round"]
    if not before.mark.round < round < 2**63:
        raise DataError(f"{path}, line {number}: round {round} is out of order", _REMEDY)
    last = record[next(reversed(record))]
    if found:
        (last if isinstance(last, dict) else record).pop("crc", None)
    return _Line(raw, record, found is not None, Mark(round, crc))


def _no_record(path: Path, number: int) -> DataError:
    return DataError(f"{path}, line {number} is not a record", _REMEDY)
