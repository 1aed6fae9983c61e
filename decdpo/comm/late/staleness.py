"""Messages that are late by a schedule: seeded, or as a recorded run has received them.

Agent i mixes in round t what its neighbour j sent in round t - d_ij(t), 0 <= d_ij(t) <= q, and no
earlier than round 0. With ``Inbox.displace``

    x_i <- x_i + sum_j w_ij (m_j(t - d_ij(t)) - m_i(t)),

our reading of bounded staleness: the agent's own share is always of today. An agent whose messages
arrive with different delays is counted by some and not by others, so that the sum over all agents
is not preserved even if the weights are doubly stochastic; the mean model drifts by the differences
between old and new. Hence only algorithms that carry no conserved sums can be late.

Staleness enters Jiang, "Distributed Direct Preference Optimization", 2026, by Theorem 5.5, among
those on FedDPO; that messages of gossip are late is ours.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from decdpo.comm.late.delays import Delays, age_file
from decdpo.comm.membership import Membership
from decdpo.comm.mixing import Received
from decdpo.comm.world import Counters, Exchange, Trace
from decdpo.messages import Inbox, Message
from decdpo.topology.row import Row


class Around:
    """An exchange that does what the one within does, for others to change a part of."""

    def __init__(self, inner: Exchange) -> None:
        self._inner = inner
        self.counters: Counters = inner.counters

    @property
    def message_bytes(self) -> int:
        """Bytes of one message."""
        return self._inner.message_bytes

    @property
    def transport(self) -> str:
        """How messages travel."""
        return self._inner.transport

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user would want otherwise of that."""
        return self._inner.doubts

    @property
    def trace(self) -> Trace | None:
        """Called after every span of the exchange within."""
        return self._inner.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._inner.trace = trace

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends in a round with this ``row``."""
        return self._inner.sends(agent, row)

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Send ``message`` (M,)."""
        self._inner.start(agent, round, row, message)

    def collect(self, round: int) -> bool:
        """Say whether every message of every local agent is here."""
        return self._inner.collect(round)

    def missing(self, round: int) -> tuple[int, ...]:
        """Return the remote agents whose messages of ``round`` are not here."""
        return self._inner.missing(round)

    def rewire(self, members: Membership, rows: Mapping[int, Row]) -> None:
        """Give the round that has started other ``rows``."""
        self._inner.rewire(members, rows)

    def blank(self) -> Tensor:
        """Return a new vector (M,) of any values."""
        return self._inner.blank()

    def inbox(self, agent: int, round: int) -> Inbox:
        """Return what ``agent`` receives in ``round``."""
        return self._inner.inbox(agent, round)

    def close(self) -> None:
        """Free the exchange within. Collective."""
        self._inner.close()


class StaleExchange(Around):
    """An exchange that keeps what it has received and hands out old messages, as ``delays`` says.

    inner : brings the messages of every round, all of them. Those of the last q + 1 rounds are kept
    once for each source that this process listens to. max_age : q.
    """

    def __init__(self, inner: Exchange, delays: Delays, max_age: int) -> None:
        super().__init__(inner)
        self._delays = delays
        self._depth = max_age + 1
        self._rows: dict[int, Row] = {}
        self._kept: dict[int, list[Tensor]] = {}
        self._newest: dict[int, int] = {}
        self.counters.ages = [0] * self._depth

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Send ``message`` (M,)."""
        self._rows[agent] = row
        self._inner.start(agent, round, row, message)

    def rewire(self, members: Membership, rows: Mapping[int, Row]) -> None:
        """Refuse: who becomes a neighbour only now has sent no older messages."""
        raise ValueError("messages that may be late need rows that stay the same")

    def inbox(self, agent: int, round: int) -> Received:
        """Return messages of ``round`` and earlier; waits for those of ``round`` all the same.

        A message's body stays as it is until inboxes of the next round are read.
        """
        received = self._inner.inbox(agent, round)
        self._keep(received, round)
        ages = self._delays.ages(agent, round, self._rows[agent].sources)
        messages = []
        for message, wanted in zip(received.messages, ages, strict=True):
            age = min(wanted, round)
            self.counters.ages[age] += 1
            body = self._kept[message.source][(round - age) % self._depth]
            messages.append(Message(message.source, message.weight, age, body))
        return Received(
            received.sent, tuple(messages), own=received.own, agent=received.agent
        )

    def recall(self, rows: Mapping[int, Row], history: Mapping[int, Mapping[int, Tensor]]) -> None:
        """Receive again what agents sent before the run was resumed. Collective.

        rows : by local agent. history : messages (M,) by agent and round, the last q rounds of all
        local agents.
        """
        for t in sorted({t for messages in history.values() for t in messages}):
            for agent, messages in history.items():
                self._inner.start(agent, t, rows[agent], messages[t])
            self._inner.collect(t)
            for agent in history:
                self._keep(self._inner.inbox(agent, t), t)

    def close(self) -> None:
        """Free the exchange within. Collective."""
        super().close()
        self._kept.clear()

    def _keep(self, received: Inbox, round: int) -> None:
        """Copy the messages of ``round`` that have not been copied yet."""
        received.settle()
        for message in received.messages:
            source = message.source
            if self._newest.get(source) != round:
                self._newest[source] = round
                if source not in self._kept:
                    new = [torch.empty_like(message.body) for _ in range(self._depth)]
                    self._kept[source] = new
                self._kept[source][round % self._depth].copy_(message.body)


class AgeLog(Around):
    """An exchange that writes down how old every message was, one file per local agent.

    folder : of the files. Lines follow what is there already, in rounds counted from 1 as in the
    metrics.
    """

    def __init__(self, inner: Exchange, folder: Path) -> None:
        super().__init__(inner)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def inbox(self, agent: int, round: int) -> Inbox:
        """Return what ``agent`` receives, and write down the ages."""
        inbox = self._inner.inbox(agent, round)
        ages = [message.age for message in inbox.messages]
        with age_file(self._folder, agent).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": round + 1, "ages": ages}) + "\n")
        return inbox
