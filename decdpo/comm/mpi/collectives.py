"""What all ranks do together: few, small, never in a training round, and never blind to a stall.

Every operation is nonblocking underneath and waits with sleeps, so that ranks which share a core
do not starve one another, a lost rank becomes an error, and a request to stop is noticed meanwhile.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from decdpo.comm.local import ordered_sum
from decdpo.comm.membership import Membership
from decdpo.comm.mpi.attendance import Attendance
from decdpo.comm.waiting import Deadline
from decdpo.comm.world import Arrays, in_order
from decdpo.errors import PeerLost

SMALL = 1 << 16
"""Up to so many values in all, every rank gets every agent's array and sums by itself."""
BLOCK_VALUES = 1 << 22
"""About how many values a rank holds twice while it sums larger arrays."""
MANY = 4
"""From so many agents a rank on, large arrays are summed by one rank after another."""
HANDED = 1 << 13
"""Values that a rank hands to the next at a time, at least, which works on them meanwhile."""
PARTIAL = 4
"""The tag of a sum over some ranks."""
REMEDY = "look at what that process printed last; raise comm.timeout if it only is slow"


def _somebody(waited: float) -> str:
    return f"some process did not join the others for {waited:.1f} s"


class Collectives:
    """Gathers and sums on one communicator, which belongs to one thread.

    comm : of all ranks. deadline : how to wait. stalled : says who did not come in so many seconds.
    """

    def __init__(
        self, comm: Any, deadline: Deadline, stalled: Callable[[float], str] = _somebody
    ) -> None:
        self._comm = comm
        self._deadline = deadline
        self._stalled = stalled

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        self._wait(self._comm.Ibarrier())

    def flags(self, value: int) -> np.ndarray:
        """Return every rank's integer, (ranks,) int64. Collective."""
        found = np.empty(self._comm.size, dtype=np.int64)
        self._wait(self._comm.Iallgather(np.array([value], dtype=np.int64), found))
        return found

    def texts(self, text: str) -> list[str]:
        """Return every rank's text, in rank order. Collective."""
        # A fault may name a path that is not UTF-8.
        data = np.frombuffer(text.encode(errors="backslashreplace"), dtype=np.uint8)
        counts = self.flags(len(data))
        found = self._gather(data, counts)
        ends = np.cumsum(counts)
        return [bytes(found[end - count : end]).decode() for end, count in zip(ends, counts)]

    def sum(self, values: Arrays, members: Membership) -> np.ndarray:
        """Return the sum over agents in ascending id, float64. Collective.

        Large arrays of few agents: a rank gets its share of the positions from all agents, sums
        them in order, and the shares are gathered, block by block, so the extra memory stays
        bounded. Of many agents, which lie on the ranks in the order of their ids: a rank adds its
        own to what the ranks before it have summed, and only sums travel.
        """
        mine = members.agents_of(self._comm.rank)
        lent = not isinstance(values, Mapping)
        arrays = [array.copy() if lent else array for array in in_order(values, mine)]
        shape, flat = arrays[0].shape, [array.reshape(-1) for array in arrays]
        size = flat[0].size
        if len(members.agents) * size <= SMALL:
            return self._sum_everywhere(flat, members).reshape(shape)
        if len(members.agents) >= MANY * self._comm.size and _ascend(members):
            return self._sum_in_turn(flat).reshape(shape)
        total = np.empty(size)
        ranks = self._comm.size
        step = max(ranks, BLOCK_VALUES // int(_agents_per_rank(members, ranks).max()))
        for lo in range(0, size, step):
            part = slice(lo, min(lo + step, size))
            total[part] = self._sum_shares([array[part] for array in flat], members)
        return total.reshape(shape)

    def _sum_everywhere(self, flat: list[np.ndarray], members: Membership) -> np.ndarray:
        size = flat[0].size
        counts = size * _agents_per_rank(members, self._comm.size)
        found = self._gather(np.concatenate(flat).astype(np.float64), counts)
        return ordered_sum(_ascending(found.reshape(len(members.agents), size), members))

    def _sum_in_turn(self, flat: list[np.ndarray]) -> np.ndarray:
        before, after = self._comm.rank - 1, self._comm.rank + 1
        last = self._comm.size - 1
        total = np.empty(flat[0].size)
        # All ranks are at work but while the first part comes to the last, and the last to the end.
        step = max(HANDED, total.size // (16 * self._comm.size))
        parts = [slice(lo, lo + step) for lo in range(0, total.size, step)]
        sends = []
        for part in parts:
            if self._comm.rank == 0:
                total[part] = ordered_sum(array[part] for array in flat)
            else:
                self._wait(self._comm.Irecv(total[part], before, PARTIAL))
                for array in flat:
                    total[part] += array[part]
            if self._comm.rank < last:
                sends.append(self._comm.Isend(total[part], after, PARTIAL))
        for send in sends:
            self._wait(send)
        self._wait(self._comm.Ibcast(total, root=last))
        return total

    def _sum_shares(self, flat: list[np.ndarray], members: Membership) -> np.ndarray:
        ranks, size = self._comm.size, flat[0].size
        ends = size * np.arange(ranks + 1) // ranks
        lengths = np.diff(ends)
        mine = int(lengths[self._comm.rank])
        out = np.concatenate([array[a:b] for a, b in zip(ends, ends[1:]) for array in flat])
        received = np.empty((len(members.agents), mine))
        sends = len(flat) * lengths, len(flat) * ends[:-1]
        counts = mine * _agents_per_rank(members, ranks)
        receives = counts, np.cumsum(counts) - counts
        self._wait(
            self._comm.Ialltoallv([out.astype(np.float64), sends], [received.reshape(-1), receives])
        )
        return self._gather(ordered_sum(_ascending(received, members)), lengths)

    def _gather(self, mine: np.ndarray, counts: np.ndarray) -> np.ndarray:
        found = np.empty(int(counts.sum()), dtype=mine.dtype)
        offsets = np.cumsum(counts) - counts
        self._wait(self._comm.Iallgatherv(mine, [found, (counts, offsets)]))
        return found

    def _wait(self, request: Any) -> None:
        try:
            self._deadline.until(request.Test, self._stalled, REMEDY)
        except RuntimeError as fault:
            # Errors of MPI are of this kind; with fault tolerance it says so when a rank is lost.
            raise PeerLost(
                f"a process was lost in a step that all take: {fault}",
                "look at what it printed last, and start again or resume",
            ) from fault


class ThreadChannel:
    """The side channel of a background thread: its own communicator, its own waiting.

    Made by ``MpiWorld.side_channel``.
    """

    def __init__(self, comm: Any, members: Membership, timeout: float) -> None:
        attendance = Attendance(comm, members)
        stalled = partial(attendance.stalled, "what runs in the background")
        self._collectives = Collectives(comm, Deadline(timeout, attendance.poll), stalled)

    def outcomes(self, outcome: str) -> list[str]:
        """Return the texts that all processes pass, in rank order. Collective."""
        return self._collectives.texts(outcome)


def _agents_per_rank(members: Membership, ranks: int) -> np.ndarray:
    return np.array([len(members.agents_of(rank)) for rank in range(ranks)], dtype=np.int64)


def _ascend(members: Membership) -> bool:
    """Say whether the agents of every rank come before those of the next."""
    return bool((np.diff(members.by_rank) > 0).all())


def _ascending(arrays: np.ndarray, members: Membership) -> Iterator[np.ndarray]:
    """Yield the rows of ``arrays`` (n, size), which lie rank after rank, in ascending agent id."""
    return (arrays[place] for place in np.argsort(members.by_rank))
