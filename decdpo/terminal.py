"""Standard streams that cannot end a command: closed ones, and readers that have gone."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""What the system says when nobody will ever read a stream again."""


def open_what_is_closed() -> None:
    """Give standard streams that were closed to the null device.

    Otherwise the next file that is opened gets their number, and with it what libraries print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))


class Lasting:
    """A text stream whose write and flush never fail; what nobody reads is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if somebody reads."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as fault:
            self._drop(fault)
        return len(text)

    def flush(self) -> None:
        """Flush if somebody reads."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as fault:
            self._drop(fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, fault: Exception) -> None:
        if getattr(fault, "errno", None) in GONE:
            to_null(self._stream)

    def end(self) -> None:
        """Leave nothing in the buffer that could fail while the interpreter ends."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            to_null(self._stream)


def to_null(stream: Any) -> None:
    """Let the null device take what is written to ``stream`` from now on."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """While open, standard output and error never fail."""
    before = sys.stdout, sys.stderr
    streams = Lasting(before[0]), Lasting(before[1])
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.end()
        sys.stdout, sys.stderr = before
