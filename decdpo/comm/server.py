"""Averaging through a server: many letters up to one agent, one letter, their mean, back down.

The server is an agent like any other, which also sums. Each participant sends one vector up and
hears one, so a round costs 2 (K - 1) messages for K participants, and nobody but the server holds
more than one letter. The star of federated averaging (McMahan et al., 2017) and of gradient
averaging.
"""

from bisect import bisect_left

import torch
from torch import Tensor

from decdpo.comm.world import Exchange, Trace
from decdpo.messages import BLOCK, Inbox, Letter
from decdpo.topology.row import Row

_SILENT = Row(1.0, (), (), ())


class ServerExchange:
    """An exchange whose every inbox holds one letter of weight 1, the weighted mean.

    A row names the participants as ``sources``, ascending and the agent itself included, with their
    averaging weights; it is the same for all agents, and ``targets`` is empty.

    up, down : two exchanges of the same vectors, owned from now on. server : the agent that sums,
    the first one of its process. all_hear : agents that do not participate hear the mean as well;
    otherwise their inbox is empty.
    """

    def __init__(
        self, up: Exchange, down: Exchange, server: int = 0, *, all_hear: int | None = None
    ) -> None:
        self._up = up
        self._down = down
        self._server = server
        self._everybody = tuple(range(all_hear)) if all_hear else ()
        self.counters = down.counters = up.counters
        self._rows: dict[int, Row] = {}
        self._mean: Tensor | None = None

    @property
    def message_bytes(self) -> int:
        """Bytes of one message, up or down."""
        return self._up.message_bytes

    @property
    def transport(self) -> str:
        """How messages travel."""
        return self._up.transport

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user would want otherwise of that."""
        return self._up.doubts

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends: one up, or the mean to each other listener.

        What the server has to say to itself is no message.
        """
        if agent != self._server:
            return int(_contains(row.sources, agent))
        listeners = self._everybody or row.sources
        return len(listeners) - _contains(listeners, agent)

    @property
    def trace(self) -> Trace | None:
        """Called after every span of either exchange."""
        return self._up.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._up.trace = self._down.trace = trace

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Send ``message`` (M,) to the server if ``agent`` participates; listen for the mean."""
        self._rows[agent] = row
        takes_part = _contains(row.sources, agent)
        if message is None and takes_part:
            raise ValueError(f"agent {agent} participates but has no message")
        if agent == self._server:
            pairs = [(j, w) for j, w in zip(row.sources, row.weights) if j != agent]
            sources, weights = tuple(j for j, _ in pairs), tuple(w for _, w in pairs)
            self._up.start(agent, round, Row(0.0, sources, weights, ()), message)
            return
        targets = (self._server,) if takes_part else ()
        self._up.start(agent, round, Row(0.0, (), (), targets), message)
        hears = takes_part or bool(self._everybody)
        listens = Row(0.0, (self._server,), (1.0,), ()) if hears else _SILENT
        self._down.start(agent, round, listens, None)

    def finish(self, agent: int, round: int) -> Inbox:
        """Return the mean as the one letter of ``round``; the server's process makes it first."""
        row = self._rows[agent]
        heard = self._up.finish(agent, round)
        if agent != self._server:
            answer = self._down.finish(agent, round)
            own = 0.0 if answer.letters else 1.0
            return Inbox(heard.sent, answer.letters, answer.arrivals, own)
        place = bisect_left(row.sources, agent)
        own = row.weights[place] if _contains(row.sources, agent) else 0.0
        mean = self._average(agent, own, heard)
        listeners = self._everybody or row.sources
        targets = tuple(j for j in listeners if j != agent)
        self._down.start(agent, round, Row(0.0, (), (), targets), mean)
        # It hears nothing, but this sends what waits for a device: nobody may come here again.
        self._down.finish(agent, round)
        hears = own != 0.0 or bool(self._everybody)
        letters = (Letter(agent, 1.0, 0, mean),) if hears else ()
        return Inbox(heard.sent, letters, own=0.0 if hears else 1.0)

    def close(self) -> None:
        """Free both exchanges. Collective."""
        self._up.close()
        self._down.close()

    def _average(self, agent: int, own: float, heard: Inbox) -> Tensor:
        """Return sum_j w_j m_j in ascending id, part by part as the letters arrive."""
        terms = [(letter.source, letter.weight, letter.body) for letter in heard.letters]
        if own != 0.0:
            terms.append((agent, own, heard.sent))
        terms.sort(key=lambda term: term[0])
        (_, weight, body), *others = terms
        if self._mean is None:
            self._mean = torch.empty_like(body)
        for part in heard.arrivals:
            bodies = [other[part].split(BLOCK) for _, _, other in others]
            blocks = zip(self._mean[part].split(BLOCK), body[part].split(BLOCK), *bodies)
            for target, first, *rest in blocks:
                torch.mul(first, weight, out=target)
                for (_, scale, _), block in zip(others, rest):
                    target.add_(block, alpha=scale)
        return self._mean


def _contains(ascending: tuple[int, ...], agent: int) -> bool:
    """Say whether ``agent`` is in a sorted tuple, without looking at all of it."""
    place = bisect_left(ascending, agent)
    return place < len(ascending) and ascending[place] == agent
