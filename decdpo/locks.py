"""One job at a time in a folder: a lock that a kill opens."""

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

from decdpo.errors import EnvironmentFault

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What flock says on a file system without locks, such as Lustre mounted so, or NFS."""


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for a reader, should the file be a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


class Lock:
    """The lock ``folder``/.lock, taken until ``close`` or the end of this process.

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
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
                f"({fault.strerror}); see to it that none is started there"
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
