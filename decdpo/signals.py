"""What signals do to a training command, from its first moment to its last line.

Until the first round SIGTERM, SIGINT, SIGHUP and SIGQUIT end the command at once, since there is
nothing to save; SIGUSR1 is kept for the first round's end. During the rounds the first of SIGUSR1,
SIGTERM, SIGINT and SIGHUP asks for a stop at the next common round end. A second one of the last
three, or a SIGQUIT, ends the process wherever it is. Each says so in a line.

The handlers are of Python and run between two of its instructions; a thread is woken as well, so
that a long computation or a wait inside a library does not delay what must not be late.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

ASK = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask a run to stop at a round's end."""
END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that end at once what has nothing to save, or has been asked already."""
TWICE = 1.0
"""Seconds within which a second signal is the first one again: launchers pass some on twice."""
CONTINUED = 2.0
"""Seconds by which Open MPI's SIGCONT can precede its SIGTERM; its SIGKILL follows after 0.25 s."""
LEFT = 0.1
"""Seconds of the launcher's 0.25 in which a run may save before a line says what is saved."""


class Interrupted(BaseException):
    """A signal that ends a command before its first round; ``code`` is the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"ended by {name_of(number)} before the first round; nothing is lost: "
            "give the same command again"
        )
        self.code = 128 + number


@dataclass
class Watch:
    """What a run in progress wants done.

    request : asks all processes for a stop at a common round end. saved : says what is on disk and
    how to go on, empty if that has been said. tell : notes that. speaks : whether this process
    prints it. end : ends all processes with a status. killed : is called when the launcher is
    about to kill this process. over : whether the rounds are done and saved.
    """

    request: Callable[[], None]
    saved: Callable[[], str]
    tell: Callable[[], None]
    speaks: bool
    end: Callable[[int], NoReturn]
    killed: Callable[[], None]
    over: bool = False


class Signals:
    """The signals of one command; a context. Only the main thread of a process can listen.

    asked : the name of the first signal that asked for a stop, empty without one.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._watch: Watch | None = None
        self._first = 0.0
        self._continued = -CONTINUED
        self._before: dict[int, Any] = {}
        self._ends: tuple[int, int] | None = None
        self._wakeup = -1

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ends = os.pipe()
        for end in self._ends:
            os.set_blocking(end, end == self._ends[0])
        self._wakeup = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        for number in sorted({*ASK, *END, signal.SIGCONT}):
            # What nohup or a shell has made this process ignore stays so; but job scripts ignore
            # SIGUSR1 until somebody listens.
            if number == signal.SIGUSR1 or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._between)
        threading.Thread(target=self._listen, args=(self._ends[0],), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends is None:
            return
        for number, handler in self._before.items():
            # A job script may ask again while this process ends: that must not kill it. SIG_IGN
            # would do, but programs that we start would inherit it.
            late = number == signal.SIGUSR1 and handler == signal.SIG_DFL
            signal.signal(number, (lambda *_: None) if late else handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._ends[1])  # which ends the thread
        self._ends = None

    def watch(self, watch: Watch) -> None:
        """Let a run take over: from now on signals ask it for a stop."""
        self._watch = watch
        if self.asked:
            watch.request()

    def _between(self, number: int, _: FrameType | None) -> None:
        """Handle a signal between two instructions of the main thread."""
        if self._watch is None:
            if number in END:
                raise Interrupted(number)
            if number in ASK:
                self._note(number)

    def _listen(self, end: int) -> None:
        """Handle signals as they come, also while the main thread is inside a library."""
        with contextlib.suppress(OSError):
            while numbers := os.read(end, 64):
                for number in numbers:
                    self._at_once(number)
        os.close(end)

    def _at_once(self, number: int) -> None:
        now, watch = time.monotonic(), self._watch
        if number == signal.SIGCONT:
            self._continued = now
        elif watch is None or number not in self._before:
            return
        elif number == signal.SIGTERM and now - self._continued < CONTINUED:
            self._note(number)
            watch.killed()
            watch.request()
            # A short round may yet be saved.
            time.sleep(LEFT)
            _say(watch, "ended by the launcher, which sends SIGKILL after SIGTERM")
        elif number == signal.SIGQUIT or (number in END and self._asked_before(now)):
            _say(watch, f"ended by {name_of(number)}")
            watch.end(128 + number)
        elif not watch.over:
            fresh = not self.asked
            self._note(number)
            watch.request()
            if fresh or number in END:
                again = "; once more ends it at once" if number in END else ""
                _print(watch, f"{name_of(number)}: stopping when this round is saved{again}")

    def _asked_before(self, now: float) -> bool:
        """Say whether a signal of END has come before, long enough ago to be another one."""
        first, self._first = self._first, self._first or now
        return bool(first) and now - first >= TWICE

    def _note(self, number: int) -> None:
        self.asked = self.asked or name_of(number)


def name_of(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name


def _say(watch: Watch, what: str) -> None:
    """Print how the run ends and what is saved, unless another process has said it."""
    saved = watch.saved()
    if saved:
        _print(watch, f"{what}; {saved}")
        watch.tell()


def _print(watch: Watch, line: str) -> None:
    """Print a line at once, past what the main thread may be printing."""
    if watch.speaks:
        start = "\n" if os.isatty(2) else ""
        with contextlib.suppress(OSError):
            os.write(2, f"{start}decdpo: {line}\n".encode(errors="backslashreplace"))
