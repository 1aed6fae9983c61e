"""What all living ranks do together where some may be lost: by messages, then agreed.

Every operation sends what each rank has to the first living one, which answers all; then all agree
on whether it has succeeded. If a rank is lost meanwhile, it is done again among those that are
left. So it returns the same on all of them, and whoever is lost is lost to all of them at once.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np

from decdpo.comm.local import ordered_sum
from decdpo.comm.membership import Membership
from decdpo.comm.mpi.survivors import Survivors
from decdpo.comm.world import Arrays, in_order
from decdpo.errors import PeerLost, StallError

T = TypeVar("T")
Combine = Callable[[list[np.ndarray]], np.ndarray]
"""Makes the answer to all, uint8, of what the living ranks have sent, in ascending rank."""
BLOCK_VALUES = 1 << 22
"""About how many values the first rank holds of a large sum at once."""
TAGS = 1 << 14


class SurvivorCollectives:
    """Gathers and sums among the living ranks; has the methods of ``collectives.Collectives``.

    comm : used for nothing else. survivors : who is alive. end_absent : ends the ranks that do not
    answer. members : the agents on the living ranks now.
    """

    def __init__(
        self,
        comm: Any,
        survivors: Survivors,
        end_absent: Callable[[], bool],
        members: Callable[[], Membership],
    ) -> None:
        self._comm = comm
        self._survivors = survivors
        self._end_absent = end_absent
        self._members = members
        self._attempts = count()

    def barrier(self) -> None:
        """Wait for all living ranks. Collective."""
        while not self._survivors.decide(True):
            pass

    def flags(self, value: int) -> np.ndarray:
        """Return every living rank's integer, int64, in rank order. Collective."""
        return self._together(_bytes(np.array([value], dtype=np.int64)), np.concatenate).view(
            np.int64
        )

    def texts(self, text: str) -> list[str]:
        """Return every living rank's text, in rank order. Collective."""
        data = np.frombuffer(text.encode(errors="backslashreplace"), dtype=np.uint8)
        found = self._together(data, _framed)
        num = int(found[:8].view(np.int64)[0])
        ends = 8 * (1 + num) + np.cumsum(found[8 : 8 * (1 + num)].view(np.int64))
        starts = [8 * (1 + num), *ends[:-1]]
        return [bytes(found[lo:hi]).decode() for lo, hi in zip(starts, ends)]

    def sum(self, values: Arrays, members: Membership) -> np.ndarray:
        """Return the sum over the living agents in ascending id, float64. Collective.

        members : as it was when the values were made; losses on the way are left out of the sum.
        """
        mine = members.agents_of(self._survivors.rank)
        lent = not isinstance(values, Mapping)
        arrays = [a.copy() if lent else a for a in in_order(values, mine)]
        shape, size = arrays[0].shape, arrays[0].size
        flat = [array.reshape(-1) for array in arrays]
        total = np.empty(size)
        step = max(1, BLOCK_VALUES // len(members.agents))
        for lo in range(0, size, step):
            part = slice(lo, min(lo + step, size))
            block = np.stack([array[part] for array in flat]).astype(np.float64)
            total[part] = self._together(_bytes(block), self._adder(part)).view(np.float64)
        return total.reshape(shape)

    def _adder(self, part: slice) -> Combine:
        size = part.stop - part.start

        def add(found: list[np.ndarray]) -> np.ndarray:
            members = self._members()
            rows = np.concatenate(found).view(np.float64).reshape(-1, size)
            order = [agent for rank in self._survivors.alive for agent in members.agents_of(rank)]
            return _bytes(ordered_sum(rows[place] for place in np.argsort(order)))

        return add

    def _together(self, mine: np.ndarray, combine: Combine) -> np.ndarray:
        """Return what the first living rank makes of all ``mine``, uint8. Collective."""
        while True:
            answer = None
            try:
                answer = self._attempt(mine, combine)
            except PeerLost:
                pass
            if self._survivors.decide(answer is not None):
                assert answer is not None
                return answer

    def _attempt(self, mine: np.ndarray, combine: Combine) -> np.ndarray:
        tag = 2 * (next(self._attempts) % TAGS)
        first, *others = self._survivors.alive
        if self._survivors.rank != first:
            return self._follow(mine, first, tag)
        sizes = {rank: np.empty(1, dtype=np.int64) for rank in others}
        here = self._receive(sizes, tag)
        bodies = {rank: np.empty(int(sizes[rank][0]), dtype=np.uint8) for rank in here}
        here = self._receive(bodies, tag + 1)
        # Whoever waits for the answer must get one in any case.
        whole = len(here) == len(others)
        answer = combine([mine, *(bodies[rank] for rank in others)]) if whole else mine[:0]
        word = np.array([len(answer) if whole else -1], dtype=np.int64)
        sends = [self._send(word, rank, tag) for rank in others]
        sends += [self._send(answer, rank, tag + 1) for rank in others if whole]
        self._finish(sends)
        if not whole:
            raise PeerLost("a process is lost")
        return answer

    def _follow(self, mine: np.ndarray, first: int, tag: int) -> np.ndarray:
        size = np.array([len(mine)], dtype=np.int64)
        sends = [self._send(size, first, tag), self._send(mine, first, tag + 1)]
        word = np.empty(1, dtype=np.int64)
        try:
            if not self._receive({first: word}, tag) or word[0] < 0:
                raise PeerLost("a process is lost")
            answer = np.empty(int(word[0]), dtype=np.uint8)
            if not self._receive({first: answer}, tag + 1):
                raise PeerLost("a process is lost")
        finally:
            self._finish(sends)
        return answer

    def _receive(self, buffers: Mapping[int, np.ndarray], tag: int) -> list[int]:
        """Fill ``buffers`` from their ranks; return the ranks that are not lost."""
        requests = {}
        for rank, buffer in buffers.items():
            request = self._try(lambda: self._comm.Irecv(buffer, rank, tag))
            if request is not None:
                requests[rank] = request
        return [rank for rank, request in requests.items() if self._wait(request)]

    def _send(self, data: np.ndarray, rank: int, tag: int) -> tuple[Any, np.ndarray]:
        return self._try(lambda: self._comm.Isend(data, rank, tag)), data

    def _finish(self, sends: Sequence[tuple[Any, np.ndarray]]) -> None:
        for request, _ in sends:
            if request is not None:
                self._wait(request)

    def _wait(self, request: Any) -> bool:
        """Wait for a request; say whether the other side is not lost. Ends whoever is absent."""
        lost: list[bool] = []

        def done() -> bool:
            found = self._try(request.Test)
            lost[:] = [found is None]
            return found is None or bool(found)

        try:
            self._survivors.deadline.until(done, lambda waited: "")
        except StallError:
            self._end_absent()
            self._survivors.deadline.until(
                done, lambda waited: f"a process has not answered for {waited:.1f} s"
            )
        return not lost[0]

    def _try(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as fault:
            if not self._survivors.is_loss(fault):
                raise
            return None


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return an array's bytes as (nbytes,) uint8."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _framed(texts: list[np.ndarray]) -> np.ndarray:
    """Return how many texts there are, how long each is, and all of them, uint8."""
    head = np.array([len(texts), *(len(text) for text in texts)], dtype=np.int64)
    return np.concatenate([head.view(np.uint8), *texts])
