"""Values kept beside the shards, found by the digest of all that they depend on.

Tokens and reference log-probabilities are the same in every run on the same pairs, whatever is
trained on them, and are made once. A file of them is a head and records::

    head      MAGIC (8 bytes), kind (4 bytes), version (uint32)
    record    CRC-32 of the rest (uint32), bytes of the value (uint32), key (32 bytes), value

Records are appended under a lock and nothing is ever written again, so that any number of
processes and jobs may fill one file. A kill may tear the last record, and a disk may damage another
one: reading ends at the first record whose checksum does not fit. The next who appends cuts the
file there, which is said, and what was lost is made again. Integers are little-endian.
"""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from decdpo.errors import DataError, EnvironmentFault
from decdpo.files import open_regular, reason, waited

MAGIC = b"\x89decdpo\n"
VERSION = 1
KEY = 32
"""Bytes of a key: a SHA-256."""

LARGEST_VALUE = 1 << 28
"""Bytes of the largest value that is kept or read."""

TOKENS = ".tokens"
"""Suffix of the file with the tokens of one shard, beside it."""

REFERENCE = "reference.cache"
"""The file with the reference values of all shards of a folder."""

_HEAD = struct.Struct("<8s4sI")
_CHECKSUM = struct.Struct("<I")
_REST = struct.Struct(f"<I{KEY}s")


class Cache:
    """What is kept in one file, or in memory where there is no file that can be written.

    path : the file, made when something is added; None: nothing outlasts this object. kind : four
    characters that such files begin with. what : what the values are, for messages.

    notes : what the user should know: that nothing can be kept, or that the file was damaged.
    """

    def __init__(self, path: Path | None, kind: str, what: str) -> None:
        self.path = path
        self.notes: tuple[str, ...] = ()
        self._what = what
        self._head = _HEAD.pack(MAGIC, kind.encode(), VERSION)
        self._memory: dict[bytes, list[bytes]] = {}
        self._sound = 0
        self._memory_only = path is None

    @property
    def lasting(self) -> bool:
        """Whether what has been added outlasts this process."""
        return not self._memory_only

    def find(self, keys: Collection[bytes]) -> dict[bytes, list[bytes]]:
        """Return all values kept for each of ``keys``, the oldest first; others have no entry.

        Raises ``DataError`` if there is another kind of file in the place of this one.
        """
        wanted = frozenset(keys)
        found: dict[bytes, list[bytes]] = {}
        for key, value in self._read():
            if key in wanted:
                found.setdefault(key, []).append(value)
        for key in wanted & self._memory.keys():
            found.setdefault(key, []).extend(self._memory[key])
        return found

    def add(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep values, each under a key of 32 bytes: on the disk when this returns, if it can be.

        Where the file cannot be written they are kept in memory, and ``notes`` say why, once.

        Raises ``DataError`` as ``find`` does.
        """
        if not records:
            return
        if not self._memory_only:
            try:
                return self._append(records)
            except (OSError, EnvironmentFault) as fault:
                why = fault.what if isinstance(fault, EnvironmentFault) else reason(fault)
                self._note(f"{self._what} are not kept for the next run: {self.path}: {why}")
                self._memory_only = True
        for key, value in records:
            self._memory.setdefault(key, []).append(value)

    def _read(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all records of the file up to the first that is torn or damaged."""
        if self.path is None:
            return
        try:
            file = open_regular(self.path)
        except FileNotFoundError:
            return
        except PermissionError as fault:
            self._note(f"{self._what} that are kept cannot be read: {self.path}: {reason(fault)}")
            return
        except OSError as fault:
            raise self._foreign(reason(fault)) from fault
        with file:
            self._sound = self._start(file)
            for key, value, end in _records(file):
                yield key, value
                self._sound = end

    def _append(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Append to the file, after cutting what is torn or damaged at its end."""
        assert self.path is not None
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._foreign("it is no regular file")
            with waited(descriptor) as missing:
                if missing:
                    what = f"nothing keeps two jobs from writing {self.path} at once"
                    self._note(f"{what}: {missing}")
                end, size = self._end(file)
                if end < size and missing:
                    raise OSError(errno.EIO, "its end is damaged, and it cannot be locked")
                if end < size:
                    os.ftruncate(descriptor, end)
                    self._note(
                        f"{self.path} was torn or damaged: its last {size - end:,} bytes were cut, "
                        f"and the {self._what} in them are made again"
                    )
                whole = b"".join([b"" if end else self._head, *map(_record, records)])
                _write(descriptor, whole, end)
                self._sound = end + len(whole)

    def _end(self, file: BinaryIO) -> tuple[int, int]:
        """Return where the sound part of the file ends, and its size; others may append to it."""
        size = os.fstat(file.fileno()).st_size
        start = self._start(file)
        for begin in (self._sound, start):
            # What was read before need not be read again, unless the file is another one now.
            if start <= begin <= size:
                file.seek(begin)
                end = max([begin, *(end for _, _, end in _records(file))])
                if end == size:
                    break
        return end, size

    def _start(self, file: BinaryIO) -> int:
        """Read the head and return where records begin, 0 for a file without a whole head."""
        head = file.read(_HEAD.size)
        if head != self._head[: len(head)]:
            raise self._foreign("it holds something else, or is of another version")
        return len(head) if len(head) == _HEAD.size else 0

    def _foreign(self, why: str) -> DataError:
        return DataError(
            f"{self.path} cannot be used to keep {self._what}: {why}",
            "move it away: a new one is made",
        )

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes = (*self.notes, line)


def _records(file: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield key, value and end of every record from here to the first that is not whole."""
    size, end = os.fstat(file.fileno()).st_size, file.tell()
    while True:
        head = file.read(_CHECKSUM.size + _REST.size)
        if len(head) < _CHECKSUM.size + _REST.size:
            return
        (crc,), (length, key) = _CHECKSUM.unpack_from(head), _REST.unpack_from(head, _CHECKSUM.size)
        if length > min(LARGEST_VALUE, size - end):
            return
        value = file.read(length)
        if zlib.crc32(value, zlib.crc32(head[_CHECKSUM.size :])) != crc:
            return
        end += len(head) + length
        yield key, value, end


def _record(item: tuple[bytes, bytes]) -> bytes:
    key, value = item
    rest = _REST.pack(len(value), key)
    return _CHECKSUM.pack(zlib.crc32(value, zlib.crc32(rest))) + rest + value


def _write(descriptor: int, content: bytes, end: int) -> None:
    """Write at ``end`` and force it to the disk; a disk that is full leaves nothing torn."""
    view, place = memoryview(content), end
    try:
        while view:
            written = os.pwrite(descriptor, view, place)
            view, place = view[written:], place + written
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise
