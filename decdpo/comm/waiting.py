"""Waiting for other processes without burning the core they may need."""

import os
import time
from collections.abc import Callable

from decdpo.comm.world import Counters, Trace
from decdpo.errors import StallError

SPIN = 2e-4
"""Seconds of testing before the first sleep, giving the core away after each test. What a running
neighbour sends is here sooner, and a round of 1e4 floats takes 24 us instead of 42; without giving
the core away, ranks that share it are three times slower.
"""
FIRST_PAUSE = 5e-6
LAST_PAUSE = 5e-4


class Deadline:
    """Polls until a condition holds, sleeping longer and longer, or gives up.

    timeout : seconds before ``StallError``. poll : called once per pause for whatever else must go
    on meanwhile (the agreement to stop).
    """

    def __init__(self, timeout: float, poll: Callable[[], object] = lambda: None) -> None:
        self.timeout = timeout
        self.poll = poll

    def until(
        self, done: Callable[[], bool], stalled: Callable[[float], str], remedy: str = ""
    ) -> float:
        """Wait until ``done`` is true; return the seconds it took.

        stalled : makes the message of the ``StallError`` from the seconds waited.
        """
        if done():
            return 0.0
        begin = time.perf_counter()
        while (now := time.perf_counter()) - begin < SPIN:
            os.sched_yield()
            if done():
                return now - begin
        pause = FIRST_PAUSE
        while True:
            self.poll()
            time.sleep(pause)
            if done():
                return time.perf_counter() - begin
            pause = min(1.5 * pause, LAST_PAUSE)
            waited = time.perf_counter() - begin
            if waited > self.timeout:
                raise StallError(stalled(waited), remedy)


class Waits:
    """Waiting for neighbours: booked on them, and never idle.

    deadline : how to wait. place : names where an agent is, for errors.

    Attributes
    ----------
    counters : what the waiting has cost. trace : called after every wait, None for not at all.
    meanwhile : what else must be done while this process waits.
    """

    def __init__(self, deadline: Deadline, place: Callable[[int], str]) -> None:
        self.deadline = deadline
        self.counters = Counters()
        self.trace: Trace | None = None
        self.meanwhile: list[Callable[[], object]] = []
        self._place = place

    def until(self, done: Callable[[], bool], agent: int, neighbour: int, round: int) -> None:
        """Wait until ``done``, which ``agent`` needs of ``neighbour`` in ``round``.

        Raises ``StallError`` at the deadline.
        """
        began = time.perf_counter()

        def active() -> bool:
            for action in self.meanwhile:
                action()
            return done()

        seconds = self.deadline.until(
            active if self.meanwhile else done,
            lambda waited: f"agent {agent} waited {waited:.1f} s for {self._place(neighbour)} in "
            f"round {round}",
            "look at what that process printed last; raise comm.timeout if it only is slow",
        )
        counters = self.counters
        counters.wait_seconds += seconds
        waits = counters.wait_by_neighbour
        waits[neighbour] = waits.get(neighbour, 0.0) + seconds
        if self.trace:
            spot = {"agent": agent, "round": round, "neighbour": neighbour}
            self.trace("wait", began, time.perf_counter(), spot)
