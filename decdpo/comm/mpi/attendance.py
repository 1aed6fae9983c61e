"""Who is present: asked by whoever has waited too long, answered by whoever waits as well.

A rank that waits is alive and in step; one that does not answer is stopped, lost, or still at work.
"""

import time
from typing import Any

import numpy as np

from decdpo.comm.membership import Membership

QUESTION = 2
GRACE = 1.5
"""Seconds to wait for answers; a rank that waits looks for a question every millisecond or so."""
MOST_NAMED = 8


class Attendance:
    """Who is present on one communicator, asked at most once: the job ends afterwards.

    comm : on which nothing else travels under the tag ``QUESTION``; belongs to one thread.
    members : the agents on its ranks.
    """

    def __init__(self, comm: Any, members: Membership) -> None:
        self._comm = comm
        self._members = members
        self._present: set[int] = set()
        self._mine = np.array([comm.rank], dtype=np.int64)
        self._theirs = np.empty(1, dtype=np.int64)
        self._sent: list[Any] = []

    def poll(self) -> None:
        """Answer the question if it was asked; never blocks."""
        while self._comm.Iprobe(tag=QUESTION):
            self._comm.Recv(self._theirs, tag=QUESTION)
            self._present.add(int(self._theirs[0]))
        if self._present and not self._sent:
            self._announce()

    def stalled(self, purpose: str, waited: float) -> str:
        """Ask who is present, and say who did not join in ``purpose`` for so many seconds.

        The first of those present soon returns, the others leave the error to it for a while.
        """
        absent = self.absent()
        if self._present and min(self._present) < self._comm.rank:
            time.sleep(GRACE)
        if absent:
            return f"{self._name(absent)} did not join the others in {purpose} for {waited:.1f} s"
        return f"no process is missing, but not all have come to {purpose} in {waited:.1f} s"

    def absent(self) -> list[int]:
        """Return the ranks that neither wait nor have waited in vain, ascending."""
        if not self._sent:
            self._announce()
        end = time.perf_counter() + GRACE
        while len(self._present) < len(self._sent) and time.perf_counter() < end:
            time.sleep(1e-3)
            self.poll()
        others = set(range(self._comm.size)) - {self._comm.rank}
        return sorted(others - self._present)

    def _announce(self) -> None:
        others = (rank for rank in range(self._comm.size) if rank != self._comm.rank)
        self._sent = [self._comm.Isend(self._mine, rank, QUESTION) for rank in others]

    def _name(self, ranks: list[int]) -> str:
        """Name processes and the agents that live there."""
        names = [name_process(rank, self._members) for rank in ranks[:MOST_NAMED]]
        if len(ranks) > MOST_NAMED:
            names.append(f"{len(ranks) - MOST_NAMED} more")
        return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]


def name_process(rank: int, members: Membership) -> str:
    """Name a process and the agents that live there."""
    agents = members.agents_of(rank)
    if agents in ((rank,), ()):
        return f"process {rank}"  # which is its agent's number, too, if it has a real one
    if len(agents) == 1:
        return f"process {rank} (agent {agents[0]})"
    first, last = agents[0], agents[-1]
    if last - first + 1 == len(agents):
        return f"process {rank} (agents {first} to {last})"
    few = ", ".join(map(str, agents[:MOST_NAMED]))
    return f"process {rank} (agents {few}{', ...' * (len(agents) > MOST_NAMED)})"
