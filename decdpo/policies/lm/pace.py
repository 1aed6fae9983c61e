"""How far a long preparation is, said in regular intervals."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

INTERVAL = 10.0
"""Seconds between two lines."""


class Pace:
    """While open, says every ten seconds how many pairs are done and how long the rest takes.

    say : prints a line; None for silence. total : pairs that every work will go through. A thread
    speaks, so that a line comes also while a single batch takes longer.
    """

    def __init__(
        self,
        say: Callable[[str], None] | None = None,
        total: int = 0,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._total = total
        self._interval = interval
        self._clock = clock
        self._work = ""
        self._done: dict[str, int] = {}
        self._skipped: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._last = clock()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def begin(self, work: str) -> None:
        """Turn to a work; the time from now on is spent on it."""
        self._last, self._work = self._clock(), work

    def step(self, pairs: int, work: str = "") -> None:
        """Count so many more pairs as done in the present work, if that is ``work``."""
        if work and work != self._work:
            return
        now = self._clock()
        self._seconds[self._work] = self._seconds.get(self._work, 0.0) + now - self._last
        self._done[self._work] = self._done.get(self._work, 0) + pairs
        self._last = now

    def skip(self, pairs: int) -> None:
        """Leave so many pairs out of the present work: they are known from before."""
        self._skipped[self._work] = self._skipped.get(self._work, 0) + pairs

    def line(self) -> str:
        """Return what is to be said now."""
        work, done = self._work, self._done.get(self._work, 0)
        if not done:
            spent = duration(self._clock() - self._last)
            return f"{work}, since {spent}" if work else ""
        total = self._total - self._skipped.get(work, 0)
        left = self._seconds[work] / done * max(total - done, 0)
        return f"{work}: {done:,} of {total:,} pairs, about {duration(left)} left"

    def __enter__(self) -> "Pace":
        if self._say is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType
    ) -> None:
        self._leave.set()
        if self._thread.is_alive():
            self._thread.join()

    def _speak(self) -> None:
        while not self._leave.wait(self._interval):
            line = self.line()
            if line and self._say is not None:
                self._say(line)


def duration(seconds: float) -> str:
    """Return a time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
