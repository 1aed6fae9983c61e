"""Which message of a remote neighbour a round mixes: the rule of an exchange.

``Synchronous`` mixes the message of this very round, ``late.arrival.ByArrival`` the newest here.
Late by schedule needs no rule of its own: it keeps what a synchronous exchange brings
(``late.staleness.StaleExchange``).
"""

from typing import Protocol

from decdpo.comm.links.base import Claim, Edge, Links, Memory
from decdpo.comm.membership import Membership
from decdpo.comm.waiting import Waits
from decdpo.errors import PeerLost, StallError


class Edges:
    """The messages of remote agents, each agent's opened when it is first listened to."""

    def __init__(self, links: Links, members: Membership) -> None:
        self.members = members
        self._links = links
        self._open: dict[int, Edge] = {}

    def of(self, source: int) -> Edge:
        """Return the messages of ``source``."""
        edge = self._open.get(source)
        if edge is None:
            edge = self._open[source] = self._links.edge(source, self.members.rank_of(source))
        return edge

    def rewire(self, members: Membership) -> list[int]:
        """Give up the messages of agents that are lost, or have moved to another rank.

        Returns these agents.
        """
        before, self.members = self.members.home, members
        gone = [j for j in self._open if members.home.get(j) != before[j]]
        for source in gone:
            self._open.pop(source).close()
        return gone

    def close(self) -> None:
        """Give up all that is still expected."""
        for edge in self._open.values():
            edge.close()
        self._open.clear()


class Rule(Protocol):
    """Says which message of a remote neighbour is mixed. depth : send slots an agent needs.

    late : whether a message may be of an earlier round.
    """

    depth: int
    late: bool

    def turn(self, round: int) -> None:
        """Begin ``round``, and let the slots be used again whose messages no longer count."""
        ...

    def expect(self, source: int, agent: int, round: int) -> None:
        """Be ready for the message of ``round`` that ``agent`` receives from ``source``."""
        ...

    def take(self, source: int, agent: int, round: int) -> Claim:
        """Return the message that ``agent`` mixes in ``round``, here or on its way.

        Raises ``StallError`` if it must be waited for in vain.
        """
        ...

    def complete(self, round: int) -> bool:
        """Wait for all messages of ``round``; say whether they came, or were given up."""
        ...

    def missing(self, round: int) -> tuple[int, ...]:
        """Return the agents whose messages of ``round`` are not here, ascending."""
        ...

    def rewire(self, members: Membership) -> None:
        """Expect nothing more of agents that are lost."""
        ...

    def quiet(self) -> bool:
        """Say whether no message is on its way that this round or the next one waits for."""
        ...

    def settled(self, round: int) -> bool:
        """Say, after the last ``round``, whether nothing must be taken any more; never blocks."""
        ...

    def close(self) -> None:
        """Cancel what is still expected."""
        ...


class Synchronous:
    """Every message is mixed in its own round.

    Why nothing can deadlock: consider the rank with the lowest round t. Whatever it waits for, a
    message of round t or a free slot last used in round t - 2, needs only that others have started
    round t, or finished round t - 2. They have, and they keep the library's progress going while
    they wait themselves.
    """

    depth = 2
    late = False

    def __init__(self, edges: Edges, memory: Memory, waits: Waits, last_chunk: int) -> None:
        self._edges = edges
        self._memory = memory
        self._waits = waits
        self._last = last_chunk
        self._claims: dict[int, Claim] = {}
        self._listener: dict[int, int] = {}

    def turn(self, round: int) -> None:
        """Give back the slots of the last round.

        A message that nobody has read to its end is waited for: its slot cannot be used before.
        That of a lost agent does not come, and its slot is not used again.
        """
        for source, claim in self._claims.items():
            try:
                if not claim.arrived(self._last):
                    self._await(source, claim)
            except PeerLost:
                continue
            self._memory.release(claim)
        self._claims.clear()

    def expect(self, source: int, agent: int, round: int) -> None:
        """Claim the message of ``round``, once for all agents of this rank."""
        if source not in self._claims:
            self._claims[source] = self._edges.of(source).claim(round)
            self._listener[source] = agent

    def take(self, source: int, agent: int, round: int) -> Claim:
        """Return the message of ``round``."""
        return self._claims[source]

    def complete(self, round: int) -> bool:
        """Wait for all messages of ``round``."""
        try:
            for source, claim in self._claims.items():
                if not claim.arrived(self._last):
                    self._await(source, claim)
        except StallError:
            return False
        return True

    def missing(self, round: int) -> tuple[int, ...]:
        """Return the agents whose messages of ``round`` have not arrived."""
        return tuple(sorted(source for source, c in self._claims.items() if not self._here(c)))

    def rewire(self, members: Membership) -> None:
        """Give up the messages of agents that are lost or have moved."""
        for source in self._edges.rewire(members):
            self._claims.pop(source, None)

    def quiet(self) -> bool:
        """Say whether every message has arrived."""
        return all(self._here(claim) for claim in self._claims.values())

    def settled(self, round: int) -> bool:
        """Say yes: what still comes is cancelled, and its sender has done with it."""
        return True

    def close(self) -> None:
        """Cancel what is still expected."""
        self._edges.close()
        self._claims.clear()

    def _here(self, claim: Claim) -> bool:
        try:
            return claim.arrived(self._last)
        except PeerLost:
            return False

    def _await(self, source: int, claim: Claim) -> None:
        self._waits.until(
            lambda: claim.arrived(self._last), self._listener[source], source, claim.round
        )
