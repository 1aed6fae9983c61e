"""What every world offers: members, exchanges between them, and a few collectives.

Two worlds implement these protocols: ``LocalWorld`` (all agents in this process) and ``MpiWorld``
(agents spread over ranks). Nothing above this package knows the word rank.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decdpo.comm.membership import Membership
from decdpo.messages import Inbox
from decdpo.topology.row import Row


@dataclass
class Counters:
    """What an exchange has cost this process so far.

    messages_sent, bytes_sent : that left this process (headers included; messages between agents of
    one process are free, and one message serves all agents of another). messages_to_nodes,
    bytes_to_nodes : those of them that went to another node. wait_seconds : spent blocked in
    ``start``, ``collect`` and inboxes. wait_by_neighbour : seconds waited for each remote source
    agent. How long a message travelled while this process computed is not among them: nobody looks
    when it arrives. ages : how many messages were 0, 1, ... rounds old when they were mixed; empty
    where none can be late.
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
"""Called after every span of an exchange: name ("post", "wait", "mix"), begin and end in seconds of
``time.perf_counter``, and the agent, round and neighbour it belongs to."""


class Exchange(Protocol):
    """Carries one vector per agent and round to its neighbours; made once, used every round.

    In a round every local agent is started, then the round is collected, then every local agent's
    inbox is read. counters : what it has cost so far. trace : called after every span, None for not
    at all. message_bytes : of one message as it is encoded, without its header. transport : how
    messages travel here and why, in words. doubts : what the user would want otherwise of that.
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

    def collect(self, round: int) -> bool:
        """Say whether every message of every local agent is here; False if a peer is lost.

        Does not raise for a lost peer. Where nobody may be lost it says yes without waiting, and
        messages are mixed as they arrive.
        """
        ...

    def missing(self, round: int) -> tuple[int, ...]:
        """Return the remote agents whose messages of ``round`` are not here, ascending."""
        ...

    def rewire(self, members: Membership, rows: Mapping[int, Row]) -> None:
        """Give the round that has started other ``rows``, by local agent, among ``members``.

        The messages stay the same; they are sent on the edges that are new. Collect again.
        """
        ...

    def blank(self) -> Tensor:
        """Return a new vector (M,) of any values, where messages are mixed."""
        ...

    def inbox(self, agent: int, round: int) -> Inbox:
        """Return what ``agent`` receives in ``round``, once that is collected.

        The inbox is valid until the first ``start`` of a later round. Where its parts arrive while
        they are used, ``StallError`` names a neighbour that does not answer in time, the round and
        the seconds.
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

    members : the agents that take part and where they are. local_agents : those of this process,
    ascending. is_root : whether this process may print and write the files that all share.
    purpose : what the next collective calls are for, which an error names where a process does not
    come; set it at will.
    """

    purpose: str

    @property
    def members(self) -> Membership: ...

    @property
    def local_agents(self) -> tuple[int, ...]: ...

    @property
    def is_root(self) -> bool: ...

    @property
    def num_agents(self) -> int:
        """How many agents take part."""
        ...

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
    ) -> Exchange:
        """Make an exchange for vectors of ``size`` values. Collective.

        max_age : how many rounds old a message may be; above 0, only messages that would be older
        are waited for, and the newest that are there are mixed. Rows must then stay the same.
        whole : whether ``collect`` waits for every message, so that no inbox can fail.
        ``digest`` names the parameter layout; a message with another one is an error. staging : the
        way from and to a GPU, through "host" memory or straight from the "device".
        """
        ...

    def commit(self, round: int, complete: bool) -> Membership:
        """Agree on ``round``: return the members whose messages of it are mixed. Collective.

        complete : whether every message of this process has come. Costs no communication where no
        agent may be lost; there ``StallError`` is raised if the round is not complete. Otherwise
        other members than before are returned if it is not complete everywhere: give the exchange
        new rows among them, and collect it again.
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

    def request_save(self) -> None:
        """Ask all processes to save at a common round end, and to go on. For the root alone."""
        ...

    def save_due(self, round: int) -> bool:
        """Say, at the end of every ``round``, whether to save now because the root has asked.

        All processes answer yes for the same round, once for each request. Costs no communication
        until it asks.
        """
        ...

    def side_channel(self) -> SideChannel | None:
        """Return a channel for a background thread, None if the library has no thread support.
        Collective."""
        ...

    def close(self) -> None:
        """Free what the world owns. Collective."""
        ...
