"""What all ranks do together: few, small, never in a training round, and never blind to a stall.

Every operation is nonblocking underneath and waits with sleeps, so that ranks which share a core
do not starve one another, a lost rank becomes an error, and a request to stop is heard meanwhile.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from decdpo.comm.local import ordered_sum
from decdpo.comm.placement import Placement
from decdpo.comm.rollcall import RollCall
from decdpo.comm.waiting import Patience
from decdpo.comm.world import Arrays, in_order

SMALL = 1 << 16
"""Up to so many values in all, every rank gets every agent's array and sums by itself."""
BLOCK_VALUES = 1 << 22
"""About how many values a rank holds twice while it sums larger arrays."""
REMEDY = "look at what that process printed last; raise comm.timeout if it only is slow"


def _somebody(waited: float) -> str:
    return f"some process did not join the others for {waited:.1f} s"


class Collectives:
    """Gathers and sums on one communicator, which belongs to one thread.

    comm : of all ranks. patience : how to wait. stalled : says who did not come in so many seconds.
    """

    def __init__(
        self, comm: Any, patience: Patience, stalled: Callable[[float], str] = _somebody
    ) -> None:
        self._comm = comm
        self._patience = patience
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

    def sum(self, values: Arrays, placement: Placement) -> np.ndarray:
        """Return the sum over agents in ascending id, float64. Collective.

        A rank gets its share of the positions from all agents, sums them in order, and the shares
        are gathered; large arrays go block by block, so the extra memory stays bounded.
        """
        mine = placement.agents_of(self._comm.rank)
        lent = not isinstance(values, Mapping)
        arrays = [array.copy() if lent else array for array in in_order(values, mine)]
        shape, flat = arrays[0].shape, [array.reshape(-1) for array in arrays]
        size = flat[0].size
        if placement.num_agents * size <= SMALL:
            return self._sum_everywhere(flat, placement).reshape(shape)
        total = np.empty(size)
        step = max(self._comm.size, BLOCK_VALUES // len(placement.agents_of(0)))
        for lo in range(0, size, step):
            part = slice(lo, min(lo + step, size))
            total[part] = self._sum_shares([array[part] for array in flat], placement)
        return total.reshape(shape)

    def _sum_everywhere(self, flat: list[np.ndarray], placement: Placement) -> np.ndarray:
        size = flat[0].size
        counts = size * _agents_per_rank(placement)
        found = self._gather(np.concatenate(flat).astype(np.float64), counts)
        return ordered_sum(found.reshape(placement.num_agents, size))

    def _sum_shares(self, flat: list[np.ndarray], placement: Placement) -> np.ndarray:
        ranks, size = self._comm.size, flat[0].size
        ends = size * np.arange(ranks + 1) // ranks
        lengths = np.diff(ends)
        mine = int(lengths[self._comm.rank])
        out = np.concatenate([array[a:b] for a, b in zip(ends, ends[1:]) for array in flat])
        heard = np.empty((placement.num_agents, mine))
        sends = len(flat) * lengths, len(flat) * ends[:-1]
        counts = mine * _agents_per_rank(placement)
        receives = counts, np.cumsum(counts) - counts
        self._wait(
            self._comm.Ialltoallv([out.astype(np.float64), sends], [heard.reshape(-1), receives])
        )
        return self._gather(ordered_sum(heard), lengths)

    def _gather(self, mine: np.ndarray, counts: np.ndarray) -> np.ndarray:
        found = np.empty(int(counts.sum()), dtype=mine.dtype)
        offsets = np.cumsum(counts) - counts
        self._wait(self._comm.Iallgatherv(mine, [found, (counts, offsets)]))
        return found

    def _wait(self, request: Any) -> None:
        self._patience.until(request.Test, self._stalled, REMEDY)


class ThreadChannel:
    """The side channel of a background thread: its own communicator, its own waiting.

    Made by ``MpiWorld.side_channel``.
    """

    def __init__(self, comm: Any, placement: Placement, timeout: float) -> None:
        roll = RollCall(comm, placement)
        stalled = partial(roll.stalled, "what runs in the background")
        self._collectives = Collectives(comm, Patience(timeout, roll.poll), stalled)

    def outcomes(self, outcome: str) -> list[str]:
        """Return the texts that all processes pass, in rank order. Collective."""
        return self._collectives.texts(outcome)


def _agents_per_rank(placement: Placement) -> np.ndarray:
    ranks = range(placement.num_ranks)
    return np.array([len(placement.agents_of(rank)) for rank in ranks], dtype=np.int64)
