"""What every world offers: placement of agents, an exchange, and a few collectives.

Two worlds implement these protocols: ``LocalWorld`` (all agents in this process) and ``MpiWorld``
(agents spread over ranks). Nothing above this package knows the word rank.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decdpo.messages import Inbox
from decdpo.topology.row import Row


@dataclass
class Counters:
    """What an exchange has cost this process so far.

    messages_sent, bytes_sent : that left this process (headers included; messages between agents of
    one process are free, and one message serves all agents of another). messages_to_nodes,
    bytes_to_nodes : those of them that went to another node. wait_seconds : spent blocked in
    ``start`` and ``finish``. wait_by_neighbour : seconds waited for each remote source agent. How
    long a letter travelled while this process computed is not among them: nobody looks when it
    arrives. ages : how many letters were 0, 1, ... rounds old when they were mixed; empty where
    none can be late.
    """

    messages_sent: int = 0
    bytes_sent: int = 0
    wait_seconds: float = 0.0
    wait_by_neighbour: dict[int, float] = field(default_factory=dict)
    ages: list[int] = field(default_factory=list)
    messages_to_nodes: int = 0
    bytes_to_nodes: int = 0


Arrays = Mapping[int, np.ndarray] | Iterable[tuple[int, np.ndarray]]
"""An array for every local agent: by agent id, or one after another in ascending id, where an array
may be overwritten once the next is asked for."""


def in_order(values: Arrays, agents: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the arrays of ``agents``, ascending; ``ValueError`` if they are of other agents."""
    pairs = ((i, values[i]) for i in agents) if isinstance(values, Mapping) else values
    for agent, (of, array) in zip(agents, pairs, strict=True):
        if of != agent:
            raise ValueError(f"an array of agent {of} where that of agent {agent} is due")
        yield np.asarray(array)


Trace = Callable[[str, float, float, Mapping[str, int]], None]
"""Hears of every span of an exchange: name ("post", "wait", "mix"), begin and end in seconds of
``time.perf_counter``, and the agent, round and neighbour it belongs to."""


class Exchange(Protocol):
    """Carries one vector per agent and round to its neighbours; made once, used every round.

    Every local agent starts a round before the first one finishes it. counters : what it has cost
    so far. trace : called after every span, None for not at all. message_bytes : of one message as
    it is encoded, without its header. transport : how messages travel here and why, in words.
    doubts : what the user would want otherwise of that.
    """

    counters: Counters
    trace: Trace | None

    @property
    def message_bytes(self) -> int: ...

    @property
    def transport(self) -> str: ...

    @property
    def doubts(self) -> tuple[str, ...]: ...

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends in a round in which ``row`` is its own.

        That is the same wherever the agents are: a message to an agent of the same process counts.
        """
        ...

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Copy ``message`` (M,), post its sends and the receives for ``row``, and return at once.

        ``message`` may be None only for an agent that merely listens (``row.targets`` empty).
        """
        ...

    def finish(self, agent: int, round: int) -> Inbox:
        """Return what ``agent`` hears in ``round``; its parts arrive while they are used.

        The inbox is valid until the first ``start`` of a later round. Raises ``StallError`` naming
        the neighbour, the round and the seconds if one does not answer in time.
        """
        ...

    def close(self) -> None:
        """Cancel what is outstanding and free every request and buffer. Collective."""
        ...


class SideChannel(Protocol):
    """A way for one background thread per process to agree with the others."""

    def outcomes(self, outcome: str) -> list[str]:
        """Return the short texts that all processes pass, in rank order. Collective, thread-safe.

        Sleeps while waiting; raises ``StallError`` when a process does not come in time.
        """
        ...


class World(Protocol):
    """The agents, spread over one or more processes.

    num_agents : n. local_agents : the ids hosted here, ascending and contiguous. is_root : whether
    this process may print and write the files that all share (it hosts agent 0). occasion : what
    the next collective calls are for, to be told of a process that does not come; set it at will.
    """

    num_agents: int
    local_agents: tuple[int, ...]
    is_root: bool
    occasion: str

    def exchange(
        self,
        size: int,
        dtype: torch.dtype,
        *,
        digest: str = "",
        device: str = "cpu",
        staging: str = "host",
        max_age: int = 0,
    ) -> Exchange:
        """Make an exchange for vectors of ``size`` values. Collective.

        max_age : how many rounds old a letter may be; above 0, ``finish`` waits only for letters
        that would be older, and mixes the newest that are there. Rows must then stay the same.
        ``digest`` names the parameter layout; a letter with another one is an error. staging : the
        way from and to a GPU, through "host" memory or straight from the "device".
        """
        ...

    def sum(self, values: Arrays) -> np.ndarray:
        """Sum one equally shaped array per agent in ascending agent id, in float64. Collective.

        ``values`` holds the local agents'. The same bits on every process for any placement of
        the agents. For metrics and reports, never in a training round.
        """
        ...

    def collect(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """Return every agent's JSON value, keyed by agent, on every process. Collective."""
        ...

    def require(self, fault: Exception | None) -> None:
        """Raise on every process if any process passes a fault, else on none. Collective.

        All raise the same ``DecdpoError`` subclass with the first fault's message.
        """
        ...

    def require_same(self, what: str, value: str) -> None:
        """Raise ``ConfigError`` everywhere, unless all agree, naming the odd one. Collective."""
        ...

    def request_stop(self) -> None:
        """Ask all processes to stop at a common round end. Safe in a signal handler."""
        ...

    def stop_due(self, round: int) -> bool:
        """Say, at the end of ``round``, whether to stop now; all processes answer yes for the same
        round. Costs no communication until somebody asks to stop."""
        ...

    def side_channel(self) -> SideChannel | None:
        """Return a channel for a background thread, None if the library has no thread support.
        Collective."""
        ...

    def close(self) -> None:
        """Free what the world owns. Collective."""
        ...
