"""Who is missing: asked by whoever has waited too long, answered by whoever waits as well.

A rank that waits is alive and in step; one that does not answer is stopped, lost, or still at work.
"""

import time
from typing import Any

import numpy as np

from decdpo.comm.placement import Placement

CALL = 2
GRACE = 1.5
"""Seconds to wait for answers; a rank that waits looks for a call every millisecond or so."""
MOST_NAMED = 8


class RollCall:
    """The roll of one communicator, called at most once: the job ends afterwards.

    comm : on which nothing else travels under the tag ``CALL``; belongs to one thread. placement :
    of agents on its ranks.
    """

    def __init__(self, comm: Any, placement: Placement) -> None:
        self._comm = comm
        self._placement = placement
        self._present: set[int] = set()
        self._mine = np.array([comm.rank], dtype=np.int64)
        self._theirs = np.empty(1, dtype=np.int64)
        self._sent: list[Any] = []

    def poll(self) -> None:
        """Answer a call if there is one; never blocks."""
        while self._comm.Iprobe(tag=CALL):
            self._comm.Recv(self._theirs, tag=CALL)
            self._present.add(int(self._theirs[0]))
        if self._present and not self._sent:
            self._tell()

    def stalled(self, occasion: str, waited: float) -> str:
        """Call the roll and say who did not join in ``occasion`` for so many seconds.

        The first of those present is soon back, the others leave the telling to it for a while.
        """
        absent = self.absent()
        if self._present and min(self._present) < self._comm.rank:
            time.sleep(GRACE)
        if absent:
            return f"{self._name(absent)} did not join the others in {occasion} for {waited:.1f} s"
        return f"no process is missing, but not all have come to {occasion} in {waited:.1f} s"

    def absent(self) -> list[int]:
        """Return the ranks that neither wait nor have waited in vain, ascending."""
        if not self._sent:
            self._tell()
        end = time.perf_counter() + GRACE
        while len(self._present) < len(self._sent) and time.perf_counter() < end:
            time.sleep(1e-3)
            self.poll()
        others = set(range(self._comm.size)) - {self._comm.rank}
        return sorted(others - self._present)

    def _tell(self) -> None:
        others = (rank for rank in range(self._comm.size) if rank != self._comm.rank)
        self._sent = [self._comm.Isend(self._mine, rank, CALL) for rank in others]

    def _name(self, ranks: list[int]) -> str:
        """Name processes and the agents that live there."""
        names = [self._name_one(rank) for rank in ranks[:MOST_NAMED]]
        if len(ranks) > MOST_NAMED:
            names.append(f"{len(ranks) - MOST_NAMED} more")
        return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]

    def _name_one(self, rank: int) -> str:
        agents = self._placement.agents_of(rank)
        if self._placement.num_agents == self._placement.num_ranks:
            return f"process {rank}"  # which is its agent's number, too, if it has a real one
        if len(agents) == 1:
            return f"process {rank} (agent {agents[0]})"
        return f"process {rank} (agents {agents[0]} to {agents[-1]})"
