"""The file that HDF5 writes a part of a checkpoint to: it keeps the first failure."""

import errno
import io
import os
from contextlib import suppress

from decdpo.checkpoint.checksum import crc32

LARGE = 1 << 20
"""Bytes of a write from which on it is checksummed and pushed to the disk while it is made."""
_PIECE = 1 << 18
"""Bytes checksummed at a time, so that the system copies them from the processor's cache."""
_PUSH = 8 << 20
"""Bytes written before the system is asked to begin with writing them to the disk."""


class Sink:
    """A file for HDF5 to write to, which keeps the first failure and then feigns success.

    HDF5 cannot close a file that it cannot write: given a full disk it would lose the reason and
    hold the file open for ever.

    checked : bytes and CRC-32 of the last large write, None if there was none since it was reset.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.fault: OSError | None = None
        self.checked: tuple[int, int] | None = None
        self._file = file
        self._pushed = 0
        self.seek, self.tell, self.flush = file.seek, file.tell, file.flush
        self.read, self.readinto = file.read, file.readinto

    def write(self, content: memoryview) -> int:
        if self.fault is None:
            try:
                whole = memoryview(content).cast("B")
                if len(whole) < LARGE:
                    _write_all(self._file, whole)
                else:
                    self.checked = len(whole), self._write_large(whole)
            except OSError as fault:
                self.fault = fault
        return len(content)

    def truncate(self, size: int) -> int:
        if self.fault is None:
            try:
                self._file.truncate(size)
            except OSError as fault:
                self.fault = fault
        return size

    def checksum(self, content: memoryview) -> int:
        """Return the CRC-32 of a tensor just written: the one made meanwhile, if there is one."""
        if self.checked is not None and self.checked[0] == len(content):
            return self.checked[1]
        return crc32(content)

    def finish(self) -> None:
        """Force all to disk; raise what failed."""
        if self.fault is not None:
            raise self.fault
        os.fsync(self._file.fileno())

    def _write_large(self, whole: memoryview) -> int:
        """Write ``whole``, let the disk begin with it meanwhile, and return its CRC-32."""
        crc, begin = 0, self._file.tell()
        for start in range(0, len(whole), _PIECE):
            piece = whole[start : start + _PIECE]
            crc = crc32(piece, crc)
            _write_all(self._file, piece)
            self._push(begin + start + len(piece))
        return crc

    def _push(self, end: int) -> None:
        """Ask the system to begin with writing to the disk what was written before ``end``.

        Linux does so when it is told that the bytes are not needed any more. It is no more than a
        hint: what fails of the bytes themselves is raised when they are forced to disk.
        """
        if end - self._pushed < _PUSH:
            return
        with suppress(OSError):
            where = self._file.fileno(), self._pushed, end - self._pushed
            os.posix_fadvise(*where, os.POSIX_FADV_DONTNEED)
        self._pushed = end


def _write_all(file: io.FileIO, content: memoryview) -> None:
    """Write to the last byte: a system call writes 2 GiB at most, and less on a full disk.

    HDF5 hands over a whole tensor at once and does not look at how much of it was written.
    """
    rest = content
    while rest:
        written = file.write(rest)
        if not written:
            raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
        rest = rest[written:]
