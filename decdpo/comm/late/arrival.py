"""Messages as they come: a round waits only for what would otherwise be too old.

In round t the newest message of each neighbour is mixed that is here, of a round from t - q to t,
so that a recorded run can be replayed in one process (``delays.RecordedDelays``). Agents on one
rank exchange the messages of this very round.

Of each remote agent this rank keeps the newest message that it may mix, in the slot it came in, and
has one more slot posted; an agent has q + 2 send slots, so that it can run ahead of a slow
neighbour until that one would mix messages that are too old. The graph must stay the same: every
message is of the round after the last.

Why nothing can deadlock: consider the rank with the lowest round t. A neighbour is in round t or
later, and before it could block there it has sent its messages up to round t - 1, hence t - q. Nor
does a slot that t needs stay full: its last message is of round t - q - 2, and whoever mixes in a
round from t on has taken it, or takes it while it waits itself.
"""

from decdpo.comm.links.base import Claim, Edge, Memory
from decdpo.comm.membership import Membership
from decdpo.comm.rules import Edges
from decdpo.comm.waiting import Waits
from decdpo.errors import StallError


class _Stream:
    """The messages of one remote agent, in order of round.

    kept : the newest message taken, None before the first. coming : the next one. frozen : whether
    this round has mixed ``kept``, which then stays. agent : one that listens.
    """

    def __init__(
        self, edge: Edge, memory: Memory, first: int, last_chunk: int, agent: int
    ) -> None:
        self.kept: Claim | None = None
        self.coming = edge.claim(first)
        self.frozen = False
        self.agent = agent
        self._edge = edge
        self._memory = memory
        self._last = last_chunk

    def take(self, round: int) -> None:
        """Take all messages that are here and not of a later round than ``round``."""
        while not self.frozen and self.coming.round <= round:
            if not self.coming.arrived(self._last):
                return
            if self.kept is not None:
                self._memory.release(self.kept)
            self.kept = self.coming
            self.coming = self._edge.claim(self.kept.round + 1)

    def newest(self) -> int:
        """Return the round of the newest message taken, -1 for none."""
        return -1 if self.kept is None else self.kept.round


class ByArrival:
    """The newest message that is here is mixed, at most ``max_age`` rounds old."""

    late = True

    def __init__(
        self, edges: Edges, memory: Memory, waits: Waits, last_chunk: int, max_age: int
    ) -> None:
        self.depth = max_age + 2
        self._edges = edges
        self._memory = memory
        self._waits = waits
        self._last = last_chunk
        self._max_age = max_age
        self._streams: dict[int, _Stream] = {}
        self._first = -1
        self._round = -1
        waits.counters.ages = [0] * (max_age + 1)
        waits.meanwhile.append(self._take_all)

    def turn(self, round: int) -> None:
        """Begin ``round``: newer messages may take the place of those kept."""
        if self._first < 0:
            self._first = round
        for stream in self._streams.values():
            stream.frozen = False
        self._round = round

    def expect(self, source: int, agent: int, round: int) -> None:
        """Open the stream of ``source`` if this is its first round."""
        if source not in self._streams:
            edge = self._edges.of(source)
            self._streams[source] = _Stream(edge, self._memory, round, self._last, agent)

    def take(self, source: int, agent: int, round: int) -> Claim:
        """Return the message of ``source`` that this round mixes, the same on every call."""
        stream = self._streams[source]
        stream.take(round)
        oldest = self._oldest(round)
        if stream.newest() < oldest:
            self._waits.until(lambda: stream.newest() >= oldest, agent, source, round)
        stream.frozen = True
        assert stream.kept is not None
        return stream.kept

    def complete(self, round: int) -> bool:
        """Wait for what would be too old otherwise."""
        try:
            for source, stream in self._streams.items():
                self.take(source, stream.agent, round)
        except StallError:
            return False
        return True

    def missing(self, round: int) -> tuple[int, ...]:
        """Return the agents whose newest message here is too old."""
        oldest, streams = self._oldest(round), self._streams.items()
        return tuple(sorted(source for source, s in streams if s.newest() < oldest))

    def rewire(self, members: Membership) -> None:
        """Refuse: a message is of the round after the last, so that rows must stay the same."""
        raise ValueError("messages that may be late need rows that stay the same")

    def quiet(self) -> bool:
        """Say no: a neighbour may be rounds ahead."""
        return False

    def settled(self, round: int) -> bool:
        """Take the messages of all rounds; say whether those of ``round``, the last, are here."""
        for stream in self._streams.values():
            stream.frozen = False
        self._take_all()
        return all(stream.newest() == round for stream in self._streams.values())

    def close(self) -> None:
        """Cancel what is still expected."""
        self._edges.close()
        self._streams.clear()

    def _oldest(self, round: int) -> int:
        return max(round - self._max_age, self._first)

    def _take_all(self) -> None:
        for stream in self._streams.values():
            stream.take(self._round)
