"""Threads that share out the agents of a process, where each works in memory of its own.

An agent's values are computed by one thread, by the same operations as without threads: so how
many there are changes no bits.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")

WORTH = 1 << 14
"""Values that an operation must take for threads to gain more than they wait for one another."""


class Workers:
    """``count`` threads, each with operations that torch does not divide further.

    One is no thread at all: the caller does the work.
    """

    def __init__(self, count: int = 1) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self.count = count
        if count > 1:
            # Torch keeps the number for each thread, and the last one set for threads to come.
            usual = torch.get_num_threads()
            self._executor = ThreadPoolExecutor(count, "agents", torch.set_num_threads, (1,))
            started = Barrier(count)
            wait([self._executor.submit(started.wait) for _ in range(count)])
            torch.set_num_threads(usual)

    def each(self, function: Callable[[T], object], items: Sequence[T]) -> None:
        """Call ``function`` with each of ``items``, neighbours in the list by the same thread.

        Returns when all are done. Raises the error of the first item that has one.
        """
        if self._executor is None or len(items) < 2:
            return _all(function, items)
        size = -(-len(items) // self.count)
        parts = [items[first : first + size] for first in range(0, len(items), size)]
        running = [self._executor.submit(_all, function, part) for part in parts]
        wait(running)
        for one in running:
            one.result()


def _all(function: Callable[[T], object], items: Iterable[T]) -> None:
    for item in items:
        function(item)
