"""Agreeing on rounds after which all ranks save, at no cost until the root asks.

The first rank alone asks, as often as it likes. It sends a token to every other rank; all join one
nonblocking all-gather with the first round at whose end they have not yet said whether they save,
and go on. At that round's end they wait for the result: the highest round contributed, T, which no
rank has passed. All save at the end of T, and the next request begins anew. A rank that is in an
earlier round when the next request comes takes its token once it has saved; the requests are
numbered by their order on the communicator. ``stop`` explains why nobody can be beyond T.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from decdpo.comm.mpi.attendance import Attendance
from decdpo.comm.mpi.collectives import REMEDY
from decdpo.comm.waiting import Deadline

TOKEN = 3


class SaveAgreement:
    """The agreements of one world on when to save, one after another.

    comm : a communicator used for nothing else. timeout : seconds to wait for the others' answers.
    attendance : names those who do not answer. poll : does what must go on while this rank waits,
    such as joining the agreement to stop, for which another rank may wait at the same time.
    """

    def __init__(
        self, comm: Any, timeout: float, attendance: Attendance, poll: Callable[[], object]
    ) -> None:
        self._comm = comm
        self._deadline = Deadline(timeout, poll)
        self._stalled = partial(attendance.stalled, "agreeing when to save")
        self._asked = False
        self._closed = False
        self._joined = 0
        self._round = -1
        self._request: Any = None
        self._tokens: list[Any] = []
        self._nobody = np.empty(0, dtype=np.uint8)
        self._mine = np.empty(1, dtype=np.int64)
        self._all = np.empty(comm.size, dtype=np.int64)

    def ask(self) -> None:
        """Ask to save, on the first rank; takes effect at the next poll."""
        self._asked = True

    def poll(self) -> None:
        """Join the agreement if there is reason to; never blocks."""
        if self._request is not None or self._closed:
            return
        if self._asked:
            self._asked = False
            others = range(1, self._comm.size)
            self._tokens = [self._comm.Isend(self._nobody, rank, TOKEN) for rank in others]
            self._join()
        elif self._comm.rank and self._comm.Iprobe(source=0, tag=TOKEN):
            self._comm.Recv(self._nobody, 0, TOKEN)
            self._join()

    def due(self, round: int) -> bool:
        """Say, at the end of ``round``, whether to save now."""
        self._round = max(self._round, round)
        self.poll()
        due = self._request is not None and round >= self._result()
        if due:
            self._settle()
        # From here on nobody may count on this rank to save at the end of this round.
        if due or self._request is None:
            self._round = max(self._round, round + 1)
        return due

    def close(self, texts: Callable[[str], list[str]]) -> None:
        """Leave nothing in flight. Collective.

        texts : returns the texts of all ranks in rank order, on another communicator.
        """
        self._asked = False
        asked = int(texts(str(self._joined))[0])
        while True:
            if self._request is not None:
                self._result()
                self._settle()
            if self._joined == asked:
                break
            # Its token may still be on its way.
            self._comm.Recv(self._nobody, 0, TOKEN)
            self._join()
        self._closed = True
        self._comm.Free()

    def _join(self) -> None:
        self._joined += 1
        self._mine[0] = self._round
        self._request = self._comm.Iallgather(self._mine, self._all)

    def _result(self) -> int:
        self._deadline.until(self._request.Test, self._stalled, REMEDY)
        return int(self._all.max())

    def _settle(self) -> None:
        """Forget an agreement that has its result, so that the next one can begin."""
        for token in self._tokens:
            token.Wait()
        self._tokens = []
        self._request = None
