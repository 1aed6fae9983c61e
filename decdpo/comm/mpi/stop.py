"""Agreeing on the round after which all ranks stop, at no cost until somebody asks.

A rank that was asked sends a token to every other rank. Ranks look for tokens at round ends and
while they wait. Whoever was asked or finds a token contributes a round to one nonblocking
all-gather, goes on, and at that round's end waits for the result: the highest round contributed, T.
The round is the first one at whose end it has not said yet whether it stops: the one it is in, or,
once it has said no, the next, even if a save comes before that begins. So nobody is beyond T, and
all stop at the end of T. If somebody has said no at the end of the last round, T is a round that
never comes, and all go on to the end. Nothing blocks: a rank that waits here has sent its messages,
and a rank that waits for messages or for the others looks for tokens meanwhile.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from decdpo.comm.mpi.attendance import Attendance
from decdpo.comm.mpi.collectives import REMEDY
from decdpo.comm.waiting import Deadline

TOKEN = 1


class StopAgreement:
    """The agreement of one world, made at most once.

    comm : a communicator used for nothing else. timeout : seconds to wait for the others' answers.
    attendance : names those who do not answer. poll : does what must go on while this rank waits.
    """

    def __init__(
        self, comm: Any, timeout: float, attendance: Attendance, poll: Callable[[], object]
    ) -> None:
        self._comm = comm
        self._deadline = Deadline(timeout, poll)
        self._stalled = partial(attendance.stalled, "agreeing where to stop")
        self._asked = False
        self._closing = False
        self._round = -1
        self._request: Any = None
        self._tokens: list[Any] = []
        self._mine = np.empty(2, dtype=np.int64)
        self._all = np.empty((comm.size, 2), dtype=np.int64)
        self._last: int | None = None

    def ask(self) -> None:
        """Ask to stop; takes effect at the next poll. Safe in a signal handler."""
        self._asked = True

    def enter(self, round: int) -> None:
        """Take note that ``round`` is the first at whose end this rank can stop."""
        self._round = max(self._round, round)

    def poll(self) -> None:
        """Join the agreement if there is reason to; never blocks."""
        if self._request is not None:
            return
        asked = self._asked and not self._closing
        if asked or self._comm.Iprobe(tag=TOKEN):
            self._join(asked)

    def due(self, round: int) -> bool:
        """Say, at the end of ``round``, whether to stop now."""
        self.enter(round)
        self.poll()
        if self._request is None:
            # From here on nobody may count on this rank to stop at the end of this round.
            self.enter(round + 1)
            return False
        return round >= self._wait()

    def close(self, barrier: Callable[[], None]) -> None:
        """Leave nothing in flight. Collective. barrier : of all ranks, on another communicator."""
        self._closing = True
        if self._request is not None:
            self._wait()
        barrier()
        if self._request is not None:
            self._wait()
            nobody = np.empty(0, dtype=np.uint8)
            for rank in np.flatnonzero(self._all[:, 1]):
                if rank != self._comm.rank:
                    self._comm.Recv(nobody, int(rank), TOKEN)
            for token in self._tokens:
                token.Wait()
        self._comm.Free()

    def _join(self, asked: bool) -> None:
        if asked:
            nobody = np.empty(0, dtype=np.uint8)
            others = (rank for rank in range(self._comm.size) if rank != self._comm.rank)
            self._tokens = [self._comm.Isend(nobody, rank, TOKEN) for rank in others]
        self._mine[:] = self._round, asked
        self._request = self._comm.Iallgather(self._mine, self._all)

    def _wait(self) -> int:
        if self._last is None:
            self._deadline.until(self._request.Test, self._stalled, REMEDY)
            self._last = int(self._all[:, 0].max())
        return self._last
