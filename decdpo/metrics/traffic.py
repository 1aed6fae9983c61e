"""How many messages agents send: a function of the schedule, the same wherever the agents are."""

from typing import Any

import numpy as np

from decdpo.comm.world import Exchange
from decdpo.run import Run
from decdpo.topology.row import Mixing, Schedule


class Sent:
    """The messages that the agents of this process have sent since round 0.

    A message is what one agent sends to one other agent in one round, whatever carried it; also one
    within a process. With a server (the first agent) each participant sends one message up and the
    server one down to each other agent; the average of centralized training goes the same way.

    exchange : carries them; None if nobody sends anything. agents : those of this process.
    """

    def __init__(
        self, exchange: Exchange | None, schedule: Schedule, agents: tuple[int, ...]
    ) -> None:
        self._exchange = exchange
        self._schedule = schedule
        self._agents = agents
        self._rounds = 0
        self._messages = 0
        self._seen: Any = None
        self._of_seen = 0

    def until(self, rounds: int) -> tuple[int, int]:
        """Return messages and bytes of the first so many ``rounds``; never fewer than before."""
        if self._exchange is None:
            return 0, 0
        for t in range(self._rounds, rounds):
            self._messages += self._of(self._exchange, self._schedule.mixing(t))
        self._rounds = rounds
        return self._messages, self._messages * self._exchange.message_bytes

    def _of(self, exchange: Exchange, mixing: Mixing) -> int:
        # A graph that stays the same is counted once.
        if mixing is not self._seen:
            self._seen = mixing
            self._of_seen = sum(exchange.sends(i, mixing.row(i)) for i in self._agents)
        return self._of_seen


def of_first(run: Run, values: np.ndarray) -> dict[int, np.ndarray]:
    """Return what counts once for a process, as of its first agent: zeros for the others."""
    return {a.id: values if a is run.agents[0] else np.zeros_like(values) for a in run.agents}
