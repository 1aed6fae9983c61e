"""All agents in this process: the simulator, and the yardstick of every other world."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.comm.faults import as_error
from decdpo.comm.placement import Placement
from decdpo.comm.world import Arrays, Counters, Trace, in_order
from decdpo.errors import StallError
from decdpo.messages import Inbox, Letter
from decdpo.topology.row import Row


class LocalExchange:
    """Letters are the senders' own snapshots: one copy per agent and round, nothing else.

    size : M. dtype, device : of the vectors.
    """

    transport = "within one process"
    doubts: tuple[str, ...] = ()

    def __init__(self, agents: tuple[int, ...], size: int, dtype: torch.dtype, device: str) -> None:
        self.counters = Counters()
        self.trace: Trace | None = None
        self._agents = range(agents[0], agents[-1] + 1)
        self._empty = torch.empty(size, dtype=dtype, device=device)[:0]
        self._like = (size, dtype, device)
        self.message_bytes = size * dtype.itemsize
        self._round = -1
        self._bodies: dict[int, Tensor] = {}
        self._sent: dict[int, int] = {}
        self._rows: dict[int, Row] = {}
        self._inboxes: dict[int, Inbox] = {}

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends with this ``row``: one to each target."""
        return len(row.targets)

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Copy ``message`` (M,) for the listeners of ``agent``."""
        began = time.perf_counter() if self.trace else 0.0
        self._round = check_start(self._agents, agent, self._round, round, row, message)
        if self._rows.get(agent) != row:
            self._rows[agent] = row
            self._inboxes.pop(agent, None)
        if message is not None:
            body = self._bodies.get(agent)
            if body is None:
                size, dtype, device = self._like
                body = self._bodies[agent] = torch.empty(size, dtype=dtype, device=device)
            check_message(body, agent, message)
            body.copy_(message)
            self._sent[agent] = round
        if self.trace:
            spot = {"agent": agent, "round": round}
            self.trace("post", began, time.perf_counter(), spot)

    def finish(self, agent: int, round: int) -> Inbox:
        """Return the letters of ``agent``; raise ``StallError`` if one was never sent."""
        row = self._rows[agent]
        sent = self._sent
        for source in row.sources:
            if sent.get(source) != round:
                raise never_sent(source, agent, round)
        inbox = self._inboxes.get(agent)
        if inbox is None or (inbox.sent is self._empty) == (sent.get(agent) == round):
            letters = tuple(
                Letter(source, weight, 0, self._bodies[source])
                for source, weight in zip(row.sources, row.weights)
            )
            mine = self._bodies[agent] if sent.get(agent) == round else self._empty
            inbox = self._inboxes[agent] = Inbox(mine, letters, own=row.own)
        if self.trace:
            arrivals = self._traced(self.trace, agent, round)
            return Inbox(inbox.sent, inbox.letters, arrivals, row.own)
        return inbox

    def _traced(self, trace: Trace, agent: int, round: int) -> Iterator[slice]:
        began = time.perf_counter()
        yield slice(0, None)
        trace("mix", began, time.perf_counter(), {"agent": agent, "round": round})

    def close(self) -> None:
        """Drop the buffers."""
        self._bodies.clear()
        self._inboxes.clear()


class LocalWorld:
    """One process that hosts all agents.

    num_agents : n >= 1; ``EnvironmentFault`` otherwise.
    """

    is_root = True

    def __init__(self, num_agents: int) -> None:
        self.num_agents = num_agents
        self.local_agents = Placement(num_agents, 1).agents_of(0)
        self.occasion = ""
        self._stop = False

    def exchange(
        self,
        size: int,
        dtype: torch.dtype,
        *,
        digest: str = "",
        device: str = "cpu",
        staging: str = "host",
        max_age: int = 0,
    ) -> LocalExchange:
        """Make an exchange for vectors of ``size`` values.

        ``digest`` has nothing to guard here, ``staging`` nothing to send, and ``max_age`` nothing
        to wait for: no letter is late in one process.
        """
        return LocalExchange(self.local_agents, size, dtype, device)

    def sum(self, values: Arrays) -> np.ndarray:
        """Sum one array per agent in ascending agent id, in float64."""
        return ordered_sum(in_order(values, self.local_agents))

    def collect(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """Return the values, in ascending agent id."""
        return {agent: values[agent] for agent in sorted(values)}

    def require(self, fault: Exception | None) -> None:
        """Raise ``fault`` if there is one."""
        if fault is not None:
            raise as_error(fault) from fault

    def require_same(self, what: str, value: str) -> None:
        """Do nothing: one process agrees with itself."""

    def request_stop(self) -> None:
        """Ask to stop at the end of this round. Safe in a signal handler."""
        self._stop = True

    def stop_due(self, round: int) -> bool:
        """Say whether somebody has asked to stop."""
        return self._stop

    def side_channel(self) -> "LocalSideChannel":
        """Return a channel on which one background thread hears itself."""
        return LocalSideChannel()

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


class LocalSideChannel:
    """The side channel of a single process."""

    def outcomes(self, outcome: str) -> list[str]:
        """Return ``[outcome]``."""
        return [outcome]


def ordered_sum(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Return ((a_0 + a_1) + a_2) + ... in float64: one order, hence one result."""
    rest = iter(arrays)
    total = next(rest).astype(np.float64)
    for array in rest:
        total += array
    return total


def check_start(
    agents: range, agent: int, newest: int, round: int, row: Row, message: Tensor | None
) -> int:
    """Return the newest round there is; raise ``ValueError`` for a call that cannot be right."""
    if agent not in agents:
        raise ValueError(f"agent {agent} does not live here")
    if round < newest:
        raise ValueError(f"round {round} starts after round {newest}")
    if message is None and row.targets:
        raise ValueError(f"agent {agent} has listeners but no message")
    return round


def check_message(body: Tensor, agent: int, message: Tensor) -> None:
    """Raise ``ValueError`` unless ``message`` fits ``body`` (M,)."""
    if message.shape != body.shape or message.dtype != body.dtype:
        raise ValueError(
            f"agent {agent} sends {message.dtype} of shape {tuple(message.shape)} through an "
            f"exchange of {body.dtype}, shape {tuple(body.shape)}"
        )


def never_sent(source: int, agent: int, round: int) -> StallError:
    """Make the error for a letter from this very process that does not exist."""
    return StallError(
        f"agent {agent} listens to agent {source}, which lives in the same process and sent "
        f"nothing in round {round}",
        "start every local agent before the first finish, and use one mixing matrix for all",
    )
