"""Reads files that may have been damaged, forged or replaced: nothing here waits or takes on trust.

Only regular files are opened, so that a named pipe or a device in the place of one cannot hang the
reader. What JSON holds is checked against the types and ranges of a dataclass before it is used.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

T = TypeVar("T")

LARGEST = 1 << 30
"""Bytes of the largest file that is read as a whole."""

_HANDED_OVER = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
_DEPTH = 64
"""Lists and objects within one another in any JSON that this project writes."""

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class Malformed(ValueError):
    """JSON of another form than expected; the text says which field, and what it should be."""


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading bytes; never waits.

    Raises ``OSError`` if it cannot be opened, or is a folder, a named pipe, a socket or a device.
    """
    # Without O_NONBLOCK, opening a named pipe waits for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
            raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path | str, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file of at most ``largest`` bytes.

    What a shell hands over already open, as /dev/stdin or /dev/fd/63, may be a pipe.

    Raises ``OSError``, also if the file is larger.
    """
    if str(path).startswith(_HANDED_OVER):
        with open(path, "rb") as stream:
            return stream.read(largest)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            what = f"it has {size} bytes, more than the {largest} that are read"
            raise OSError(errno.EFBIG, what, str(path))
        return file.read(largest)


def read_text(path: Path | str, encoding: str = "utf-8") -> str:
    """Return the text of a regular file. Raises ``OSError``, ``UnicodeDecodeError``."""
    return read_bytes(path).decode(encoding)


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises ``ValueError`` also for bytes that are not UTF-8, for nesting without end, and for half
    surrogates, which are text that nobody can write again.
    """
    text = content.decode() if isinstance(content, bytes) else content
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        # Whoever writes the value again goes deeper than the parser, which is compiled.
        if text.count("[") + text.count("{") > _DEPTH:
            _require_depth(value, _DEPTH)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _require_depth(value: Any, left: int) -> None:
    """Raise ``RecursionError`` if lists and objects are nested more than ``left`` deep."""
    if left == 0:
        raise RecursionError
    if isinstance(value, (dict, list)):
        for child in value.values() if isinstance(value, dict) else value:
            if isinstance(child, (dict, list)):
                _require_depth(child, left - 1)


def checked(value: Any, kind: type[T]) -> T:
    """Return what ``json.loads`` gave as the dataclass ``kind``, with its types and ranges.

    Nothing is converted but a list to a tuple and an integer to a float; unknown fields are left
    out. Raises ``Malformed``.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as fault:
        raise Malformed(str(fault)) from None
