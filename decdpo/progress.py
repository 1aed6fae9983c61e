"""A line of progress: how far the run is, on a terminal or in a batch log; and what takes long."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

MODES = ("auto", "bar", "lines", "none")
"""A bar on a terminal and lines elsewhere; a bar; a line every 10 s; nothing."""
EVERY = 10.0
"""Seconds between two lines in a batch log, and until something is said to take long."""
USUAL_WIDTH = 80
LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun", "prted", "mpiexec.hydra")
"""Programs that hand what we print on to their own terminal."""
VALUES = (
    ("loss", "loss"),
    ("consensus_distance", "consensus"),
    ("heldout/average/accuracy", "held-out accuracy"),
)
"""Metrics that are shown, and their names there."""


class Working:
    """Says every 10 s what is being done, for as long as it is being done.

    say : prints a line. every : seconds. A thread watches, from the first use on.
    """

    def __init__(self, say: Callable[[str], object], every: float = EVERY) -> None:
        self._say = say
        self._every = every
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._job: tuple[str, float] | None = None
        self._count = ""

    @contextmanager
    def __call__(self, what: str) -> Iterator["Working"]:
        """Do ``what`` inside: "measuring round 200"; one at a time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="decdpo-working", daemon=True)
            self._thread.start()
        self._count = ""
        self._job = what, monotonic()
        try:
            yield self
        finally:
            self._job = None

    def at(self, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` parts are done."""
        self._count = f", {done:,} of {total:,} done"

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        said: tuple[tuple[str, float], int] | None = None
        while not self._closed.wait(min(0.5, self._every / 4)):
            job = self._job
            if job is None:
                continue
            what, began = job
            seconds = monotonic() - began
            times = int(seconds / self._every)
            if times and (job, times) != said:
                said = job, times
                self._say(f"{what}: {seconds:.0f} s so far{self._count}")


class Progress:
    """A live bar with the time left on a terminal, plain lines in a batch log.

    mode : one of ``MODES``. enabled : whether this process speaks.
    """

    def __init__(
        self,
        first: int,
        last: int,
        *,
        enabled: bool,
        mode: str = "auto",
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._mode = mode
        self._enabled = enabled and mode != "none"
        self._terminal = terminal_of(self._stream) if self._enabled else None
        drawable = self._terminal is not None and os.environ.get("TERM") != "dumb"
        self._live = self._enabled and (mode == "bar" or (mode == "auto" and drawable))
        self._first, self._last = first, last
        self._began = monotonic()
        self._shown = self._began
        self._told: Any = None
        self._dirty = False
        self._lock = threading.Lock()
        self._working = Working(self.note)

    def show(self, done: int, record: Mapping[str, Any]) -> None:
        """Show that ``done`` rounds are complete; every 0.1 s on a terminal, else every 10 s.

        record : the newest there is; what it says of an earlier round is shown with that round, and
        in a batch log only once.
        """
        if not self._enabled:
            return
        now = monotonic()
        if now - self._shown < (0.1 if self._live else EVERY) and done != self._last:
            return
        self._shown = now
        fresh = self._live or record.get("round") != self._told or done == self._last
        self._told = record.get("round")
        left = (now - self._began) / max(done - self._first, 1) * (self._last - done)
        texts = _texts(done, self._last, record if fresh else {}, clock(left))
        if self._live:
            self._draw(_fitting(texts, done / self._last, self._width()))
        else:
            self._print(texts[0])

    def speak(self) -> None:
        """Let this process speak from now on, in the place of one that is lost: lines, no bar."""
        self._enabled = self._mode != "none"

    def working(self, what: str) -> Any:
        """Return a context in which ``what`` is done, which is said if it takes long."""
        return self._working(what)

    def note(self, line: str) -> None:
        """Print a line of its own."""
        if self._enabled:
            self._print(line)

    def close(self) -> None:
        """End the live line."""
        self._working.close()
        with self._lock:
            if self._dirty:
                self._write("\n")
                self._dirty = False
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None

    def _draw(self, text: str) -> None:
        with self._lock:
            self._write(f"\r\x1b[K{text}")
            self._dirty = True

    def _print(self, line: str) -> None:
        with self._lock:
            self._write(("\r\x1b[K" if self._dirty else "") + line + "\n")
            self._dirty = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _width(self) -> int:
        """Return the columns of the terminal, as it is now."""
        try:
            if self._terminal is not None:
                columns = os.get_terminal_size(self._terminal).columns
                if columns > 0:
                    return columns
        except OSError:
            pass
        given = os.environ.get("COLUMNS", "")
        return int(given) if given.isdigit() and int(given) > 0 else USUAL_WIDTH


def terminal_of(stream: TextIO) -> int | None:
    """Return a new descriptor of the terminal on which ``stream`` ends, None if it is none.

    Under mpirun on this host that is the launcher's: the processes themselves write into a pipe.
    """
    try:
        if stream.isatty():
            return os.dup(stream.fileno())
        if stream.fileno() != 2:
            return None
        parent = f"/proc/{os.getppid()}"
        with open(f"{parent}/comm", encoding="utf-8") as file:
            name = file.read().strip()
        path = os.readlink(f"{parent}/fd/2")
        if name in LAUNCHERS and re.fullmatch(r"/dev/(pts/\d+|tty\w*|console)", path):
            return os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        # Not Linux, or not ours to look at: then it is taken for a file.
        pass
    return None


def _texts(done: int, last: int, record: Mapping[str, Any], left: str) -> list[str]:
    """Return the line in words, the longest first."""
    values = [f"{name} {record[key]:.4g}" for key, name in VALUES if record.get(key) is not None]
    of = record.get("round", done)
    when = [f"(round {of})"] if values and of != done else []
    head, rest = f"round {done}/{last}", f"{left} left"
    lines = [[head, *values[:count], *when, rest] for count in range(len(values), 0, -1)]
    return ["  ".join(line) for line in [*lines, [head, rest], [f"{done}/{last}", left], [head]]]


def _fitting(texts: list[str], share: float, width: int) -> str:
    """Return what fits into one line of ``width`` columns: as many words as may be, then a bar."""
    room = width - 1
    text = next((text for text in texts if len(text) <= room), texts[-1][: max(room, 0)])
    bar = min(24, room - len(text) - 3)
    if bar < 6:
        return text
    full = int(bar * share)
    return f"[{'#' * full}{'.' * (bar - full)}] {text}"


def clock(seconds: float) -> str:
    """Return seconds as minutes:seconds, with hours before where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
