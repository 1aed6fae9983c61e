"""All agents in this process: the simulator, and the yardstick of every other world."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.comm.checks import check_message, check_start, incomplete, never_sent
from decdpo.comm.faults import as_error
from decdpo.comm.membership import Membership
from decdpo.comm.mixing import Received
from decdpo.comm.world import Arrays, Counters, Trace, in_order
from decdpo.messages import Message
from decdpo.topology.row import Row


class LocalExchange:
    """An exchange within one process: one copy of each message, which all receivers read.

    An agent that is alone has nobody to send to: not even that copy is made.

    size : M. dtype, device : of the vectors.
    """

    transport = "within one process"
    doubts: tuple[str, ...] = ()

    def __init__(self, agents: tuple[int, ...], size: int, dtype: torch.dtype, device: str) -> None:
        self.counters = Counters()
        self.trace: Trace | None = None
        self._agents = frozenset(agents)
        self._empty = torch.empty(0, dtype=dtype, device=device)
        self._like = (size, dtype, device)
        self._form = torch.empty(size, dtype=dtype, device="meta")
        self.message_bytes = size * dtype.itemsize
        self._round = -1
        self._bodies: dict[int, Tensor] = {}
        self._sent: dict[int, int] = {}
        self._rows: dict[int, Row] = {}
        self._inboxes: dict[int, Received] = {}

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends with this ``row``: one to each target."""
        return len(row.targets)

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Copy ``message`` (M,) for those that listen to ``agent``."""
        began = time.perf_counter() if self.trace else 0.0
        self._round = check_start(self._agents, agent, self._round, round, row, message)
        if self._rows.get(agent) != row:
            self._rows[agent] = row
            self._inboxes.pop(agent, None)
        if message is not None:
            if len(self._agents) == 1:
                check_message(self._form, agent, message)
                self._bodies[agent] = message
                self._inboxes.pop(agent, None)
            else:
                self._copy(agent, message)
            self._sent[agent] = round
        if self.trace:
            spot = {"agent": agent, "round": round}
            self.trace("post", began, time.perf_counter(), spot)

    def _copy(self, agent: int, message: Tensor) -> None:
        """Keep ``message`` (M,) as it is now in the buffer of ``agent``."""
        body = self._bodies.get(agent)
        if body is None:
            size, dtype, device = self._like
            body = self._bodies[agent] = torch.empty(size, dtype=dtype, device=device)
        check_message(body, agent, message)
        body.copy_(message)

    def collect(self, round: int) -> bool:
        """Say yes: what has been sent is here."""
        return True

    def missing(self, round: int) -> tuple[int, ...]:
        """Return no agent."""
        return ()

    def rewire(self, members: Membership, rows: Mapping[int, Row]) -> None:
        """Give the round that has started other ``rows``, by agent."""
        for agent, row in rows.items():
            self._rows[agent] = row
            self._inboxes.pop(agent, None)

    def blank(self) -> Tensor:
        """Return a new vector (M,) of any values."""
        return self._empty.new_empty(self._like[0])

    def inbox(self, agent: int, round: int) -> Received:
        """Return the messages to ``agent``; raise ``StallError`` if one was never sent."""
        row = self._rows[agent]
        sent = self._sent
        for source in row.sources:
            if sent.get(source) != round:
                raise never_sent(source, agent, round)
        inbox = self._inboxes.get(agent)
        if inbox is None or (inbox.sent is self._empty) == (sent.get(agent) == round):
            messages = tuple(
                Message(source, weight, 0, self._bodies[source])
                for source, weight in zip(row.sources, row.weights)
            )
            mine = self._bodies[agent] if sent.get(agent) == round else self._empty
            inbox = self._inboxes[agent] = Received(mine, messages, own=row.own, agent=agent)
        if self.trace:
            arrivals = self._traced(self.trace, agent, round)
            return replace(inbox, arrivals=arrivals)
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

    num_agents : n >= 1; ``EnvironmentFault`` otherwise. agents : their ids, ascending; None is
    0 ... n-1.
    """

    is_root = True

    def __init__(self, num_agents: int, agents: Sequence[int] | None = None) -> None:
        self.members = (
            Membership.blocks(num_agents, 1) if agents is None else Membership.spread(agents, 1)
        )
        self.purpose = ""
        self._stop = False
        self._save = False

    @property
    def local_agents(self) -> tuple[int, ...]:
        """The agents of this process, ascending: all of them."""
        return self.members.agents

    @property
    def num_agents(self) -> int:
        """How many agents take part."""
        return len(self.members.agents)

    def exchange(
        self,
        size: int,
        dtype: torch.dtype,
        *,
        digest: str = "",
        device: str = "cpu",
        staging: str = "host",
        max_age: int = 0,
        whole: bool = False,
    ) -> LocalExchange:
        """Make an exchange for vectors of ``size`` values.

        ``digest`` has nothing to guard here, ``staging`` nothing to send, ``max_age`` and ``whole``
        nothing to wait for: no message is late in one process.
        """
        return LocalExchange(self.local_agents, size, dtype, device)

    def commit(self, round: int, complete: bool) -> Membership:
        """Return the members: nobody is lost in one process."""
        if not complete:
            raise incomplete(round)
        return self.members

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

    def request_save(self) -> None:
        """Ask to save at the end of this round."""
        self._save = True

    def save_due(self, round: int) -> bool:
        """Say, once, whether somebody has asked to save."""
        due, self._save = self._save, False
        return due

    def side_channel(self) -> "LocalSideChannel":
        """Return a channel on which one background thread agrees with itself."""
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
