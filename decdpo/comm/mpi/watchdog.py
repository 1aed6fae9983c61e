"""Who keeps the others waiting is ended, so that it cannot come back and corrupt what they do.

A rank that is stopped, stuck or cut off is no failure to MPI. Whoever has waited for too long asks
who is there. A rank that waits answers; one that does not is killed: by the asker on its own host,
on another one by a rank there that has answered. A killed process never computes or sends again,
and then MPI finds it lost.

Ranks on a host of which nobody answers cannot be killed. Perhaps they are gone, perhaps only the
network between is, and they in turn cannot reach the others: then one side alone may go on. It is
the one with more ranks, or with the lowest of all if both have as many. The others of it shut their
connections to such a host, by which MPI takes its ranks for lost, and what may still come from
there is not heard. The ranks of the smaller side end, whether they wait themselves or find later
that the larger one has done without them.
"""

import sys
import time
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import numpy as np

from decdpo.comm.mpi.boot import abort, leave, library
from decdpo.comm.mpi.processes import Process, cut_off
from decdpo.errors import StallError

TAG = 3
ASK, HERE, END, QUIT = 0, 1, 2, 3
GRACE = 1.5
"""Seconds to wait for answers; a rank that waits looks for a question every millisecond or so."""


class Watchdog:
    """Asks who is there, and ends who is not.

    comm : used for nothing else. processes : of every rank. alive : the ranks that are not lost,
    nor known to be so by this rank. name : names a rank and its agents. acknowledge : lets probes
    go on after a loss. is_loss : says whether an error means that the other side is lost.
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
        """End the ranks that do not answer; say whether there are any."""
        self._answered = {self._rank}
        for rank in self._alive():
            if rank != self._rank:
                self._send(rank, ASK, 0)
        until = time.perf_counter() + GRACE
        while time.perf_counter() < until and not self._answered.issuperset(self._alive()):
            time.sleep(1e-3)
            self.poll()
        absent = [rank for rank in self._alive() if rank not in self._answered]
        beyond = [rank for rank in absent if not self._end(rank)]
        self.separate(self._answered, beyond)
        for rank in beyond:
            self._say(f"{self._who(rank)} does not answer, nor does its host: it is lost, cut off")
        return bool(absent)

    def separate(self, here: Collection[int], gone: Collection[int]) -> None:
        """Go on with the ranks ``here``, without those ``gone``; end where that is not for us.

        Of the latter those count that are on hosts of which nobody is here, for they may live.
        """
        hosts = {self._processes[rank].host for rank in here}
        beyond = [rank for rank in gone if self._processes[rank].host not in hosts]
        if not beyond:
            return
        if (len(beyond), -min(beyond)) > (len(here), -min(here)):
            more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
            self._say(
                f"{self._name(self._rank)} ends: it cannot reach {self._name(min(beyond))}{more}, "
                f"which may go on without the {len(here)} on its side; if they do not, resume from "
                "the checkpoint"
            )
            abort(StallError.exit_code)
        cut_off(address for rank in beyond for address in self._processes[rank].addresses)

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

    def _end(self, rank: int) -> bool:
        """End a rank that does not answer; say whether anybody can."""
        process = self._processes[rank]
        ended = process.kill()
        if not ended:
            near = [r for r in self._answered if self._processes[r].host == process.host]
            for other in near[:1]:
                self._send(other, END, rank)
            ended = bool(near)
        if ended:
            self._say(f"{self._who(rank)} does not answer: it is ended, and lost")
        return ended

    def _who(self, rank: int) -> str:
        return f"{self._name(rank)} (pid {self._processes[rank].pid})"

    def _take(self, kind: int, rank: int, source: int) -> None:
        """Do what ``source`` asks; ``rank`` is an exit status where it asks to quit."""
        if source not in self._alive():
            return  # It was cut off, and does not know.
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
