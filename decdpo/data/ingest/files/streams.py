"""The bytes of a source, read once from their beginning: unpacked, decoded, counted in lines.

A pipe can be read only once, so whoever must look at the beginning gets it together with a stream
that gives it again.
"""

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decdpo.errors import DataError, EnvironmentFault

LARGEST_RECORD = 1 << 26
"""Bytes of the longest line, cell or JSON value that is read."""

HEAD = 1 << 16

_UTF8 = "\ufeff".encode()
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"{\x00": "UTF-16LE",
    b"[\x00": "UTF-16LE",
    b"\x00{": "UTF-16BE",
    b"\x00[": "UTF-16BE",
}


class _Rewound(io.RawIOBase):
    """A stream whose beginning was read already, given from its beginning."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head = head
        # What comes in pieces is not lost if a later piece is damaged.
        self._read = getattr(rest, "read1", rest.read)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        data = self._head[:size] if self._head else self._read(size)
        self._head = self._head[size:]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        super().close()
        self._rest.close()


def peek(stream: Any, size: int) -> tuple[bytes, io.BufferedReader]:
    """Return the first ``size`` bytes, fewer at the end, and a stream that begins with them."""
    parts, missing = [], size
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    head = b"".join(parts)
    return head, io.BufferedReader(_Rewound(head, stream), HEAD)


@contextmanager
def unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """Yield the bytes of a file or pipe, unpacked if gzip, bzip2, xz or Zstandard packed them.

    The file is opened once: bytes taken out of a pipe do not come again.

    Raises ``EnvironmentFault`` if it is packed with Zstandard and pyarrow is not installed.
    """
    with open(path, "rb") as file:
        head, stream = peek(file, 6)
        if head.startswith(b"\x1f\x8b"):
            unpacking: Any = gzip.GzipFile(fileobj=stream)
        elif head.startswith(b"BZh"):
            unpacking = bz2.BZ2File(stream)
        elif head.startswith(b"\xfd7zXZ\x00"):
            unpacking = lzma.LZMAFile(stream)
        elif head.startswith(b"\x28\xb5\x2f\xfd"):
            unpacking = _zstandard(path, stream)
        else:
            unpacking = stream
        with unpacking:
            yield unpacking


def _zstandard(path: Path, stream: io.BufferedReader) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise EnvironmentFault(
            f"{path} is packed with Zstandard, which needs pyarrow",
            "install it with `pip install decdpo[parquet]`, or unpack it with `unzstd`",
        ) from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


def require_utf8(path: Path, head: bytes) -> None:
    """Refuse by name the encodings that a file's first bytes show not to be UTF-8."""
    for mark, name in _OTHER_ENCODINGS.items():
        if head.startswith(mark):
            raise DataError(
                f"{path} is {name} text, not UTF-8",
                f"convert it: iconv -f {name} -t UTF-8 {path.name} > utf8-{path.name}",
            )


class Text:
    """UTF-8 text in lines or in parts, whichever is asked for; a wrong byte is named by its line.

    path : for messages. stream : the bytes.
    """

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self.path = path
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines = 0
        self._start = True
        self._damage: Exception | None = None

    def lines(self) -> Iterator[str]:
        """Yield the lines with their ends."""
        while data := self._stream.readline(LARGEST_RECORD):
            if len(data) == LARGEST_RECORD:
                raise DataError(
                    f"{self.path}, line {self._lines + 1} is longer than 64 MiB",
                    "check whether its lines are separated by line feeds",
                )
            yield self._decoded(data)

    def read(self, size: int) -> str:
        """Return about ``size`` bytes more as text; "" at the end.

        Damage is raised by the call after the one that returned all before it.
        """
        if self._damage is not None:
            raise self._damage
        parts, missing = [], size
        try:
            while missing > 0 and (part := self._stream.read1(missing)):
                parts.append(part)
                missing -= len(part)
        except Exception as error:
            if not parts:
                raise
            self._damage = error
        return self._decoded(b"".join(parts), final=missing > 0 and self._damage is None)

    def _decoded(self, data: bytes, final: bool = False) -> str:
        if self._start:
            data, self._start = data.removeprefix(_UTF8), False
        pending = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            data = pending + data
            line = self._lines + data.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{self.path}, line {line}: not UTF-8 text "
                f"(byte 0x{data[error.start]:02x}: {error.reason})",
                "convert the file to UTF-8; Western files are often WINDOWS-1252: "
                "iconv -f WINDOWS-1252 -t UTF-8",
            ) from None
        self._lines += data.count(b"\n")
        return text
