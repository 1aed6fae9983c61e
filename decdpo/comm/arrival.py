"""Letters as they come: a round waits only for what would otherwise be too old.

``finish`` returns once every neighbour's newest letter is at least of round t - q, and mixes the
newest that is there and not of a later round than t, so that a recorded run can be replayed in one
process (``staleness.RecordedDelays``). Agents on one rank hear each other at once.

Of each remote agent this rank keeps the newest letter that it may mix, in the slot it came in, and
has one more slot posted; an agent has q + 2 send slots, so that it can run ahead of a slow listener
until that one would hear letters that are too old. The graph must stay the same: every letter is of
the round after the last.

Why nothing can deadlock: consider the rank with the lowest round t. A neighbour is in round t or
later, and before it could block there it has sent what was told up to t - 1, hence t - q. Nor does
a slot that t needs stay full: its last letter is of round t - q - 2, and whoever mixes in a round
from t on has taken it, or takes it while it waits itself.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress

from torch import Tensor

from decdpo.comm.exchange import GRACE, WHOLE, MpiExchange, Wiring
from decdpo.comm.p2p import Edge, ReceiveSlot
from decdpo.comm.slots import Format
from decdpo.comm.waiting import Patience
from decdpo.errors import StallError
from decdpo.messages import Inbox


class _Stream:
    """The letters of one remote agent, in order of round.

    kept : the slot of the newest letter taken, None before the first. coming : the slot of the next
    one. frozen : whether this round has mixed ``kept``, which then stays.
    """

    def __init__(self, edge: Edge, first: int, last_chunk: int) -> None:
        self.edge = edge
        self.kept: ReceiveSlot | None = None
        self.coming = edge.claim(first)
        self.frozen = False
        self._last_chunk = last_chunk

    def take(self, round: int) -> None:
        """Take all letters that are here and not of a later round than ``round``."""
        while not self.frozen and self.coming.round <= round:
            if not self.coming.arrived(self._last_chunk):
                return
            if self.kept is not None:
                self.kept.release()
            self.kept = self.coming
            self.coming = self.edge.claim(self.kept.round + 1)

    def newest(self) -> int:
        """Return the round of the newest letter taken, -1 for none."""
        return -1 if self.kept is None else self.kept.round


class ArrivalExchange(MpiExchange):
    """An exchange between ranks that mixes what has arrived, at most ``max_age`` rounds old."""

    def __init__(
        self,
        format: Format,
        wiring: Wiring,
        patience: Patience,
        max_age: int,
        on_round: Callable[[int], None] = lambda round: None,
    ) -> None:
        super().__init__(format, wiring, patience, on_round, depth=max_age + 2)
        self._max_age = max_age
        self._streams: dict[int, _Stream] = {}
        self._first = 0
        self.counters.ages = [0] * (max_age + 1)

    def finish(self, agent: int, round: int) -> Inbox:
        """Return the newest letters, once each is of round - ``max_age`` or later."""
        inbox = super().finish(agent, round)
        for letter in inbox.letters:
            self.counters.ages[letter.age] += 1
        return inbox

    def close(self) -> None:
        """Take what is still on its way, then free everything. Collective."""
        with suppress(StallError):
            # After a failure nothing comes, and the others already wait for us.
            brief = Patience(min(self._patience.timeout / 4, GRACE), self._patience.poll)
            brief.until(self._taken_all, lambda waited: "")
        self._streams.clear()
        super().close()

    def _letter(self, source: int, agent: int, round: int) -> tuple[int, Tensor]:
        kept = self._newest(source, agent, round)
        return round - kept.round, kept.body

    def _arrivals(self, agent: int, round: int, remote: tuple[int, ...]) -> Iterable[slice]:
        return WHOLE

    def _newest(self, source: int, agent: int, round: int) -> ReceiveSlot:
        """Return the slot of the letter of ``source`` that this round mixes, on every call."""
        stream = self._streams[source]
        stream.take(round)
        oldest = max(round - self._max_age, self._first)
        if stream.newest() < oldest:
            self._wait(lambda: stream.newest() >= oldest, agent, source, round)
        stream.frozen = True
        assert stream.kept is not None
        return stream.kept

    def _expect(self, remote: tuple[int, ...], round: int) -> None:
        for source in remote:
            if source not in self._streams:
                edge = self._edge(source)
                assert isinstance(edge, Edge)
                last_chunk = len(self._format.parts) - 1
                self._streams[source] = _Stream(edge, round, last_chunk)

    def _turn(self, round: int) -> None:
        if self._round < 0:
            self._first = round
        for stream in self._streams.values():
            stream.frozen = False
        self._round = round
        self._on_round(round)

    def _wait(self, done: Callable[[], bool], agent: int, neighbour: int, round: int) -> None:
        def taken() -> bool:
            self._take_all()
            return done()

        super()._wait(taken, agent, neighbour, round)

    def _take_all(self) -> None:
        for stream in self._streams.values():
            stream.take(self._round)

    def _taken_all(self) -> bool:
        """Take the letters of all rounds; say whether none is on its way, neither in nor out."""
        for stream in self._streams.values():
            stream.frozen = False
        self._take_all()
        routes = (r for box in self._outboxes.values() for used in box.active for r in used)
        sent = [route.done() for route in routes]
        return all(sent) and all(s.newest() == self._round for s in self._streams.values())
