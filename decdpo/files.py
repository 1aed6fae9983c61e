"""Files: read without trust, replaced as a whole, forced to disk, locked; what the system refuses.

Reading takes nothing on trust and never waits: only regular files are opened, so that a named pipe
or a device in the place of one cannot hang the reader, and what JSON or TOML holds is checked
against the types and ranges of a dataclass before it is used. Writing leaves the old content or the
new one, whatever kills it. ``os_fault`` alone turns what the system refuses into an error with a
remedy.
"""

import errno
import fcntl
import glob
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

import msgspec

from decdpo.errors import DecdpoError, EnvironmentFault

T = TypeVar("T")

LARGEST = 1 << 30
"""Bytes of the largest file that is read as a whole."""

WRITING = "check the free space, the quota and the permissions of that folder"
"""What helps where a file that is replaced as a whole cannot be written."""

ANY = "check that the path exists, that you may use it, and that the disk has room"
"""What helps against a refusal that none of ``_REMEDIES`` is for."""

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "write to a folder on a writable file system",
    errno.EACCES: "check its owner and permissions, and those of its folder",
    errno.EPERM: "check its owner and permissions, and those of its folder",
    errno.EEXIST: "move the file of that name away",
    errno.ENOTDIR: "move the file of that name away",
}

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What flock says on a file system without locks, such as Lustre mounted so, or NFS."""

WAIT = 60.0
"""Seconds for which a file's lock is waited for: whoever has it only appends to the file."""

_LEFTOVER_SECONDS = 3600
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
    """Return what ``json.loads`` gave as ``kind``, a dataclass with types and ranges.

    Nothing is converted but a list to a tuple and an integer to a float; unknown fields are left
    out. Raises ``Malformed``.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as fault:
        raise Malformed(str(fault)) from None


def read_checked(path: Path | str, kind: type[T]) -> T:
    """Return what a JSON file holds as ``kind``, see ``checked``.

    Raises ``OSError`` if it cannot be read, ``ValueError`` if it is not JSON or of another form.
    """
    return checked(parse_json(read_bytes(path)), kind)


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces it if the block ends without an error.

    The file is on the disk before the new name is: a reader sees the old content or the new one.

    Raises ``EnvironmentFault`` if the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove_leftovers(path)
        os.close(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode))
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as fault:
        raise os_fault(fault, f"cannot write {path}", remedy=WRITING) from fault


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files that processes killed while writing ``path`` left behind."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        # A younger one may belong to another process that is still writing.
        if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
            leftover.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and force it to disk; its folder is left to the caller. Raises ``OSError``."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk. Raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Lock:
    """The lock ``folder``/.lock, taken until ``close`` or the end of this process: a kill opens it.

    folder : which exists. busy : says what is at work there if another process has the lock.

    Raises ``EnvironmentFault`` if another process has it, ``OSError`` if the file cannot be made or
    the system refuses for another reason. Where the file system has no locks nothing is taken, and
    ``missing`` says why; it is empty otherwise.
    """

    def __init__(self, folder: Path, busy: str) -> None:
        self.missing = ""
        # Opened to append: what the holder of the lock has written there stays.
        self._file: TextIO = open(folder / ".lock", "a", encoding="utf-8", opener=_at_once)
        try:
            _flock(self._file)
        except BlockingIOError:
            self._file.close()
            raise EnvironmentFault(
                f"another {busy} in {folder}", "wait for it, or stop it first"
            ) from None
        except OSError as fault:
            if fault.errno not in NO_LOCKS:
                self._file.close()
                raise
            self.missing = (
                f"nothing keeps a second job out of {folder}: its file system has no locks "
                f"({reason(fault)}); see to it that none is started there"
            )

    def write(self, text: str) -> None:
        """Put ``text`` into the file of the lock, for others to read."""
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_locked(folder: Path) -> bool | None:
    """Return whether a process has the lock of ``folder``; None where nobody can say.

    It takes a shared lock for an instant, which a ``Lock`` waits for.
    """
    try:
        with open(folder / ".lock", encoding="utf-8", opener=_at_once) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


def _flock(file: TextIO) -> None:
    """Take the lock; who looks whether it is taken has it for an instant, so try a few times."""
    for wait in (0.01, 0.05, 0.2):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(wait)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for a reader, should the file be a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


@contextmanager
def waited(descriptor: int, seconds: float = WAIT) -> Iterator[str]:
    """Hold the lock of an open file while the block runs, after waiting for who else has it.

    Yields why nothing is locked, where the file system has no locks; empty otherwise. Raises
    ``EnvironmentFault`` if another process keeps it for ``seconds``, ``OSError`` if the system
    refuses for another reason.
    """
    until = time.monotonic() + seconds
    missing = ""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                raise EnvironmentFault(
                    f"another process has kept it locked for {seconds:.0f} s",
                    "look for a decdpo that was stopped, and end it",
                ) from None
            time.sleep(0.01)
        except OSError as fault:
            if fault.errno not in NO_LOCKS:
                raise
            missing = f"its file system has no locks ({fault.strerror})"
            break
    try:
        yield missing
    finally:
        if not missing:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def reason(fault: Exception) -> str:
    """Return why something failed: of the system, in its own few words even if a library adds."""
    if not isinstance(fault, OSError):
        return str(fault)
    own = os.strerror(fault.errno) if fault.errno else ""
    text = str(fault.strerror or fault)
    return own if own and own in text else text


def os_fault(
    fault: OSError,
    what: str = "",
    *,
    remedy: str = "",
    also: str = "",
    kind: type[DecdpoError] = EnvironmentFault,
) -> DecdpoError:
    """Return what the system refused as an error that a user can act on.

    what : could not be done, with the path; empty is the path that the system names. remedy : empty
    is what helps against this refusal. also : stands after the remedy. kind : of the error.
    """
    named = what or str(fault.filename or "the system")
    advice = remedy or _REMEDIES.get(fault.errno or 0, ANY)
    return kind(f"{named}: {reason(fault)}", f"{advice}; {also}" if also else advice)


@contextmanager
def naming(what: str, path: Path, also: str = "") -> Iterator[None]:
    """Turn what the system refuses within the block into an error that names ``path``.

    what : could not be done. also : stands after the remedy.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # of our own output
    except OSError as fault:
        raise os_fault(fault, f"{what}: {fault.filename or path}", also=also) from fault
