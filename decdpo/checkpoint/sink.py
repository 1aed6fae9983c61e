"""The file that HDF5 writes a part of a checkpoint to: it keeps the first failure."""

import errno
import io
import os
from concurrent.futures import Executor, Future

_PUSH = 32 << 20
"""Bytes written before they are pushed to the disk in the background."""


class Sink:
    """A file for HDF5 to write to, which keeps the first failure and then feigns success.

    HDF5 cannot close a file that it cannot write: given a full disk it would lose the reason and
    hold the file open for ever.
    """

    def __init__(self, file: io.FileIO, pusher: Executor) -> None:
        self.fault: OSError | None = None
        self._file = file
        self._pusher = pusher
        self._pushes: list[Future[None]] = []
        self._waiting = 0
        self.seek, self.tell, self.flush = file.seek, file.tell, file.flush
        self.read, self.readinto = file.read, file.readinto

    def write(self, content: memoryview) -> int:
        if self.fault is None:
            try:
                self._waiting += len(content)
                if self._waiting >= _PUSH:
                    self._waiting = 0
                    self._pushes.append(self._pusher.submit(os.fdatasync, self._file.fileno()))
                _write_all(self._file, content)
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

    def finish(self) -> None:
        """Force all to disk; raise what failed. A failed push is reported to its caller alone."""
        if self.fault is not None:
            raise self.fault
        for push in self._pushes:
            push.result()
        os.fsync(self._file.fileno())


def _write_all(file: io.FileIO, content: memoryview) -> None:
    """Write to the last byte: a system call writes 2 GiB at most, and less on a full disk.

    HDF5 hands over a whole tensor at once and does not look at how much of it was written.
    """
    rest = memoryview(content).cast("B")
    while rest:
        written = file.write(rest)
        if not written:
            raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
        rest = rest[written:]
