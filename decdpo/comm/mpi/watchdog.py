"""Who keeps the others waiting is ended, so that it cannot come back and corrupt what they do.

A rank that is stopped, stuck or cut off is no failure to MPI. Whoever has waited for too long asks
who is there. A rank that waits answers; one that does not is killed: by the asker on its own host,
on another one by a rank there that has answered. A killed process never computes or sends again,
and then MPI finds it lost.
"""

import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from decdpo.comm.mpi.boot import leave, library

TAG = 3
ASK, HERE, END, QUIT = 0, 1, 2, 3
GRACE = 1.5
"""Seconds to wait for answers; a rank that waits looks for a question every millisecond or so."""


class Process(NamedTuple):
    """One process of the job: a word that only processes of its host share, its pid and its start.

    The start tells it from a later process with the same pid.
    """

    host: str
    pid: int
    start: str

    @classmethod
    def this(cls) -> "Process":
        """Return this process."""
        return cls(_host(), os.getpid(), _start_of(os.getpid()))

    def kill(self) -> bool:
        """Kill it, if it is of this host and still there; say whether it is of this host."""
        if self.host != _host():
            return False
        if self.start == _start_of(self.pid):
            with suppress(ProcessLookupError):  # It may end at this very moment.
                os.kill(self.pid, signal.SIGKILL)
        return True


class Watchdog:
    """Asks who is there, and ends who is not.

    comm : used for nothing else. processes : of every rank. alive : the ranks that are not lost.
    name : names a rank and its agents. acknowledge : lets probes go on after a loss. is_loss : says
    whether an error means that the other side is lost.
    """

    def __init__(
        self,
        comm: Any,
        processes: list[Process],
        alive: Callable[[], tuple[int, ...]],
        name: Callable[[int], str],
        acknowledge: Callable[[Any], object],
        is_loss: Callable[[Exception], bool],
    ) -> None:
        self._comm = comm
        self._rank: int = comm.Get_rank()
        self._processes = processes
        self._alive = alive
        self._name = name
        self._acknowledge = acknowledge
        self._is_loss = is_loss
        self._answered: set[int] = set()
        self._sends: list[Any] = []

    def poll(self) -> None:
        """Answer who asks, and end whom another one cannot reach; never blocks."""
        try:
            while self._comm.Iprobe(tag=TAG):
                word, status = np.empty(2, dtype=np.int64), library().Status()
                self._comm.Recv(word, tag=TAG, status=status)
                self._take(int(word[0]), int(word[1]), status.Get_source())
        except Exception as fault:
            if not self._is_loss(fault):
                raise
            self._acknowledge(self._comm)
        self._sends = [send for send in self._sends if not self._done(send[0])]

    def end_absent(self) -> bool:
        """End the ranks that do not answer; say whether there are any, or one is lost meanwhile."""
        self._answered = {self._rank}
        for rank in self._alive():
            if rank != self._rank:
                self._send(rank, ASK, 0)
        until = time.perf_counter() + GRACE
        while time.perf_counter() < until and not self._answered.issuperset(self._alive()):
            time.sleep(1e-3)
            self.poll()
        absent = [rank for rank in self._alive() if rank not in self._answered]
        for rank in absent:
            self._end(rank)
        return bool(absent)

    def quit(self, code: int) -> NoReturn:
        """Tell all to end with the exit status ``code``, and end with it."""
        for rank in self._alive():
            if rank != self._rank:
                self._send(rank, QUIT, code)
        until = time.perf_counter() + 2 * GRACE
        while self._sends and time.perf_counter() < until:
            time.sleep(1e-3)
            self._sends = [send for send in self._sends if not self._done(send[0])]
        leave(code)

    def _end(self, rank: int) -> None:
        process = self._processes[rank]
        self._say(f"{self._name(rank)} (pid {process.pid}) does not answer: it is ended, and lost")
        if not process.kill():
            near = (r for r in self._answered if self._processes[r].host == process.host)
            for other in near:
                self._send(other, END, rank)
                return
            self._say(f"no process on the host of {self._name(rank)} answers; waiting for its end")

    def _take(self, kind: int, rank: int, source: int) -> None:
        """Do what ``source`` asks; ``rank`` is an exit status where it asks to quit."""
        if kind == QUIT:
            leave(rank)
        if kind == ASK:
            self._send(source, HERE, 0)
        elif kind == HERE:
            self._answered.add(source)
        elif self._processes[rank].kill():
            self._say(f"{self._name(rank)} is ended, as process {source} asks")

    def _send(self, rank: int, kind: int, about: int) -> None:
        word = np.array([kind, about], dtype=np.int64)
        try:
            self._sends.append((self._comm.Isend(word, rank, TAG), word))
        except Exception as fault:
            if not self._is_loss(fault):
                raise

    def _done(self, request: Any) -> bool:
        try:
            return bool(request.Test())
        except Exception as fault:
            if not self._is_loss(fault):
                raise
            return True

    def _say(self, line: str) -> None:
        print(f"decdpo: {line}", file=sys.stderr, flush=True)


def _host() -> str:
    """Return a word that processes share which see each other's pids."""
    words = [platform.node()]
    for path, read in (
        ("/proc/sys/kernel/random/boot_id", lambda p: Path(p).read_text().strip()),
        ("/proc/self/ns/pid", os.readlink),
    ):
        try:
            words.append(read(path))
        except OSError:
            continue
    return " ".join(words)


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since the host did; empty if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
