"""Averaging through a server: many messages up to one agent, one message, their mean, back down.

The server is an agent like any other, which also sums. Each participant sends one vector up and
receives one, so a round costs 2 (K - 1) messages for K participants, and nobody but the server
holds more than one message. The star of federated averaging (McMahan et al., 2017) and of gradient
averaging.

If the server is lost, the lowest agent that is left takes its place. The mean travels under numbers
of its own, one for every attempt at a round, so that one made before a loss is not taken for the
one made after it.
"""

from bisect import bisect_left
from collections.abc import Mapping

from torch import Tensor

from decdpo.comm.late.staleness import Around
from decdpo.comm.membership import Membership
from decdpo.comm.mixing import Received, weighted_sum
from decdpo.comm.world import Exchange, Trace
from decdpo.messages import Inbox, Message
from decdpo.topology.row import Row

_SILENT = Row(1.0, (), (), ())


class ServerExchange(Around):
    """An exchange whose every inbox holds one message of weight 1, the weighted mean.

    A row names the participants as ``sources``, ascending and the agent itself included, with their
    averaging weights; it is the same for all agents, and ``targets`` is empty.

    up, down : two exchanges of the same vectors, owned from now on. server : the agent that sums.
    all_hear : so many agents receive the mean, whether they participate or not; otherwise the inbox
    of one that does not is empty.
    """

    def __init__(
        self, up: Exchange, down: Exchange, server: int = 0, *, all_hear: int | None = None
    ) -> None:
        super().__init__(up)
        self._down = down
        self._server = server
        self._everybody = tuple(range(all_hear)) if all_hear else ()
        down.counters = up.counters
        self._rows: dict[int, Row] = {}
        self._attempt = -1
        self._round = -1
        self._mean: Tensor | None = None
        self._sent: Tensor | None = None
        self._sent_attempt = -1

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends: one up, or the mean to each other listener.

        What the server sums of its own is no message.
        """
        if agent != self._server:
            return int(_contains(row.sources, agent))
        listeners = self._everybody or row.sources
        return len(listeners) - _contains(listeners, agent)

    @property
    def trace(self) -> Trace | None:
        """Called after every span of either exchange."""
        return self._inner.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._inner.trace = self._down.trace = trace

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Send ``message`` (M,) to the server if ``agent`` participates; expect the mean."""
        if message is None and _contains(row.sources, agent):
            raise ValueError(f"agent {agent} participates but has no message")
        if round != self._round:
            self._round = round
            self._attempt += 1
        self._rows[agent] = row
        self._inner.start(agent, round, self._upward(agent, row), message)
        if agent != self._server:
            self._down.start(agent, self._attempt, self._downward(agent, row), None)

    def collect(self, round: int) -> bool:
        """Say whether every message is here; where the server lives, make the mean and send it."""
        if not self._inner.collect(round):
            return False
        if self._server in self._rows:
            self._send_mean(round)
        return self._down.collect(self._attempt)

    def missing(self, round: int) -> tuple[int, ...]:
        """Return the remote agents whose messages of ``round`` are not here."""
        return tuple(sorted({*self._inner.missing(round), *self._down.missing(self._attempt)}))

    def rewire(self, members: Membership, rows: Mapping[int, Row]) -> None:
        """Give the round that has started other participants, and another server if it is lost.

        Those that wait for a mean which its server has not sent are sent one that nobody uses.
        """
        if rows and self._server in rows and self._sent_attempt != self._attempt:
            self._send_down(self._rows[self._server], self._down.blank(), members)
        if self._server not in members.home:
            self._server = members.agents[0]
        if self._everybody:
            self._everybody = members.agents
        self._inner.rewire(members, {i: self._upward(i, row) for i, row in rows.items()})
        self._down.rewire(members, {})
        if not rows:
            return
        self._rows = dict(rows)
        self._attempt += 1
        for i, row in rows.items():
            if i != self._server:
                self._down.start(i, self._attempt, self._downward(i, row), None)

    def inbox(self, agent: int, round: int) -> Inbox:
        """Return the mean as the one message of ``round``."""
        row = self._rows[agent]
        if agent != self._server:
            sent = self._inner.inbox(agent, round).sent
            answer = self._down.inbox(agent, self._attempt)
            own = 0.0 if answer.messages else 1.0
            return Received(sent, answer.messages, answer.arrivals, own)
        assert self._mean is not None and self._sent is not None
        if not (self._everybody or _contains(row.sources, agent)):
            return Received(self._sent, (), own=1.0)
        return Received(self._sent, (Message(agent, 1.0, 0, self._mean),), own=0.0)

    def close(self) -> None:
        """Free both exchanges. Collective."""
        super().close()
        self._down.close()

    def _upward(self, agent: int, row: Row) -> Row:
        """Return whom ``agent`` sends to and listens to on the way up."""
        if agent != self._server:
            return Row(0.0, (), (), (self._server,) if _contains(row.sources, agent) else ())
        pairs = [(j, w) for j, w in zip(row.sources, row.weights) if j != agent]
        return Row(0.0, tuple(j for j, _ in pairs), tuple(w for _, w in pairs), ())

    def _downward(self, agent: int, row: Row) -> Row:
        """Return whom ``agent``, which is not the server, listens to on the way down."""
        if self._everybody or _contains(row.sources, agent):
            return Row(0.0, (self._server,), (1.0,), ())
        return _SILENT

    def _send_mean(self, round: int) -> None:
        """Make the mean of ``round`` as the messages arrive, and send it down, once."""
        if self._sent_attempt == self._attempt:
            return
        row = self._rows[self._server]
        received = self._inner.inbox(self._server, round)
        mean = self._mean = self._average(row, received)
        self._sent = received.sent
        self._send_down(row, mean)

    def _send_down(self, row: Row, mean: Tensor, members: Membership | None = None) -> None:
        """Send ``mean`` to all that listen, of ``members`` if they are given."""
        self._sent_attempt = self._attempt
        listeners = self._everybody or row.sources
        if members is not None:
            listeners = tuple(j for j in listeners if j in members.home)
        targets = tuple(j for j in listeners if j != self._server)
        self._down.start(self._server, self._attempt, Row(0.0, (), (), targets), mean)

    def _average(self, row: Row, received: Inbox) -> Tensor:
        """Return sum_j w_j m_j in ascending id, part by part as the messages arrive."""
        terms = [(message.source, message.weight, message.body) for message in received.messages]
        if _contains(row.sources, self._server):
            own = row.weights[bisect_left(row.sources, self._server)]
            terms.append((self._server, own, received.sent))
        terms.sort(key=lambda term: term[0])
        if self._mean is None:
            self._mean = self._down.blank()
        if not terms:  # All participants are lost, and the round is not mixed.
            return self._mean
        bodies = [body for _, _, body in terms]
        weighted_sum(self._mean, [weight for _, weight, _ in terms], bodies, received.arrivals)
        return self._mean


def _contains(ascending: tuple[int, ...], agent: int) -> bool:
    """Say whether ``agent`` is in a sorted tuple, without looking at all of it."""
    place = bisect_left(ascending, agent)
    return place < len(ascending) and ascending[place] == agent
