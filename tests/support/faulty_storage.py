"""A storage that fails at a chosen operation: full, broken, read-only, slow, or short of a write.

Every operation on a file below a folder that changes it goes through here: open, write, truncate,
fsync, rename, mkdir. ``operations`` lists what was done, so that a test can let each of them fail.
"""

import builtins
import contextlib
import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS, "EDQUOT": errno.EDQUOT}
FAULTS = (*ERRORS, "slow", "short")
"""``short`` takes half of what is written and says so; ``slow`` takes its time."""
SLOW = 0.05


@dataclass
class Storage:
    """What is done below ``folder``, and what becomes of it.

    fault : one of ``FAULTS``. fails : says of an operation's number, kind and path whether it is
    struck. lasting : whether every later operation is struck as well.
    """

    folder: Path
    fault: str = ""
    fails: Callable[[int, str, str], bool] = lambda number, kind, path: False
    lasting: bool = False
    operations: list[tuple[str, str]] = field(default_factory=list)
    struck: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def does(self, kind: str, path: Any) -> str:
        """Take note of an operation; return "short" if only half of it shall be done, or raise."""
        try:
            where = str(Path(os.path.abspath(os.fspath(path))).relative_to(self.folder))
        except (TypeError, ValueError):
            return ""
        with self._lock:
            number = len(self.operations)
            self.operations.append((kind, where))
            hit = (self.lasting and self.struck) or self.fails(number, kind, where)
            if not hit:
                return ""
            self.struck.append((kind, where))
        if self.fault == "slow":
            time.sleep(SLOW)
        elif self.fault in ERRORS:
            code = ERRORS[self.fault]
            raise OSError(code, os.strerror(code), os.fspath(path))
        return self.fault


class _File(io.FileIO):
    """A file whose writes go through a ``Storage``."""

    storage: Storage

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        if self.storage.does("write", self.name) == "short" and len(view) > 1:
            view = view[: len(view) // 2]
        return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        self.storage.does("truncate", self.name)
        return super().truncate(size)


@contextlib.contextmanager
def faulty(storage: Storage) -> Iterator[Storage]:
    """Let everything that this process writes below the folder go through ``storage``."""
    opened = io.open

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+") or isinstance(file, int):
            return opened(file, mode, buffering, *args, **more)
        storage.does("open", file)
        raw = _File(file, mode.replace("b", "").replace("t", ""), opener=more.pop("opener", None))
        raw.storage = storage
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)  # type: ignore
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **more)

    def of_path(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *args: Any, **more: Any) -> Any:
            storage.does(kind, path)
            return call(path, *args, **more)

        return watched

    def sync(call: Callable[[int], None]) -> Callable[[int], None]:
        def watched(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            storage.does("fsync", os.readlink(f"/proc/self/fd/{number}"))
            call(descriptor)

        return watched

    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (builtins, "open", open_file),
            (io, "open", open_file),
            (os, "mkdir", of_path("mkdir", os.mkdir)),
            (os, "rename", of_path("rename", os.rename)),
            (os, "replace", of_path("rename", os.replace)),
            (os, "fsync", sync(os.fsync)),
            (os, "fdatasync", sync(os.fdatasync)),
        ):
            stack.enter_context(mock.patch.object(owner, name, new))
        yield storage
