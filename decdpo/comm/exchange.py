"""The exchange between ranks, composed of links, a memory and a rule.

The links say how one message moves, the memory where vectors live, the rule which message of a
neighbour a round mixes; this module knows the rounds. Each local agent has send slots, used in
turn. ``start`` waits until the slot is free, copies the message chunk by chunk and sends every
chunk as soon as it lies there, once per destination rank.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from torch import Tensor

from decdpo.comm.checks import check_start, never_sent
from decdpo.comm.links.base import Claim, Links, Memory, Route
from decdpo.comm.links.slots import Format
from decdpo.comm.membership import Membership
from decdpo.comm.mixing import WHOLE, Received
from decdpo.comm.progress import Progress
from decdpo.comm.rules import Rule
from decdpo.comm.sending import Outbox
from decdpo.comm.waiting import Deadline, Waits
from decdpo.comm.world import Counters, Trace
from decdpo.errors import StallError
from decdpo.messages import Message
from decdpo.topology.row import Row

GRACE = 5.0
"""Seconds that a closing exchange waits for its last messages to be taken."""


class Place(NamedTuple):
    """Where this process is.

    rank : its own. members : all agents and their ranks. near : the ranks of its node.
    barrier : waits for all ranks. on_close : called with the routes that could not be freed, when
    all else has been. on_round : called with every round that begins.
    """

    rank: int
    members: Membership
    near: frozenset[int]
    barrier: Callable[[], None]
    on_close: Callable[["RankExchange", list[Route]], None]
    on_round: Callable[[int], None] = lambda round: None


class _Plan(NamedTuple):
    """What a row means here: the ranks that get the message, each with one listener; and whose
    messages come from elsewhere."""

    row: Row
    destinations: tuple[tuple[int, int], ...]
    remote: tuple[int, ...]


class RankExchange:
    """Carries vectors between agents on different ranks, and within a rank.

    format : of the messages. waits : how neighbours are waited for. progress : drives messages
    during compute, or None. whole : whether ``collect`` waits for every message of a round, so that
    an inbox cannot fail; otherwise messages are mixed chunk by chunk as they arrive.
    """

    def __init__(
        self,
        format: Format,
        links: Links,
        memory: Memory,
        rule: Rule,
        waits: Waits,
        place: Place,
        progress: Progress | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.transport = ""
        self.doubts: tuple[str, ...] = ()
        self.message_bytes = format.size * format.dtype.itemsize
        self.memory = memory
        self.format = format
        self._rule = rule
        self._waits = waits
        self._place = place
        self._progress = progress
        self._whole = whole
        self._round = -1
        self._make_outbox = lambda agent: Outbox(agent, links, memory, waits, rule.depth)
        local = place.members.agents_of(place.rank)
        self._outboxes = {agent: self._make_outbox(agent) for agent in local}
        self._plans: dict[int, _Plan] = {}
        if progress is not None:
            memory.join(progress)

    @property
    def counters(self) -> Counters:
        """What the exchange has cost so far."""
        return self._waits.counters

    @counters.setter
    def counters(self, counters: Counters) -> None:
        self._waits.counters = counters

    @property
    def trace(self) -> Trace | None:
        """Called after every span, None for not at all."""
        return self._waits.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._waits.trace = trace

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends with this ``row``: one to each target."""
        return len(row.targets)

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Copy ``message`` (M,), post its sends and the receives for ``row``, and return at once.

        Waits only while the message that used the slot before has not been taken everywhere.
        """
        trace = self._waits.trace
        began = time.perf_counter() if trace else 0.0
        newest = check_start(self._outboxes, agent, self._round, round, row, message)
        if newest != self._round:
            self._turn(newest)
        outbox = self._outboxes[agent]
        plan = self._plans.get(agent)
        if plan is None or plan.row != row:
            plan = self._plans[agent] = self._make_plan(row)
        self._expect(agent, plan)
        outbox.sent = None
        if message is not None:
            self._count(outbox.send(round, message, plan.destinations))
        if trace:
            trace("post", began, time.perf_counter(), {"agent": agent, "round": round})

    def collect(self, round: int) -> bool:
        """Say whether every message of every local agent is here; False if a peer is lost.

        Says yes at once where messages are mixed as they arrive.
        """
        if self._progress is None:
            # The others may need what waits here, and this thread may not come again.
            self.memory.drain()
        if not self._whole:
            return True
        complete = self._rule.complete(round)
        if complete:
            self._rest()
        return complete

    def missing(self, round: int) -> tuple[int, ...]:
        """Return the remote agents whose messages of ``round`` are not here, ascending."""
        return self._rule.missing(round)

    def rewire(self, members: Membership, rows: Mapping[int, Row]) -> None:
        """Give the round that has started other ``rows``, by local agent, among ``members``.

        The messages stay the same; they are sent on the edges that are new. What lost agents should
        have sent or taken is given up. Between two rounds there are no ``rows``. Agents that have
        come to this process begin to send with the next round.
        """
        self._rule.rewire(members)
        for rank in set(self._place.members.ranks) - set(members.ranks):
            for outbox in self._outboxes.values():
                outbox.forget(rank)
        self._place = self._place._replace(members=members)
        for agent in members.agents_of(self._place.rank):
            if agent not in self._outboxes:
                self._outboxes[agent] = self._make_outbox(agent)
        self._plans.clear()
        for agent, row in rows.items():
            plan = self._plans[agent] = self._make_plan(row)
            self._expect(agent, plan)
            self._count(self._outboxes[agent].send_also(plan.destinations))

    def blank(self) -> Tensor:
        """Return a new vector (M,) of any values, where messages are mixed."""
        return self.memory.empty.new_empty(self.format.size)

    def inbox(self, agent: int, round: int) -> Received:
        """Return what ``agent`` receives in ``round``; its parts may arrive while they are used."""
        plan = self._plans.get(agent)
        if plan is None or round != self._round:
            raise ValueError(f"agent {agent} has not started round {round}")
        messages = []
        claims = []
        for source, weight in zip(plan.row.sources, plan.row.weights):
            local = self._outboxes.get(source)
            if local is None:
                claim = self._rule.take(source, agent, round)
                claims.append((source, claim))
                age, body = round - claim.round, self.memory.received(source, claim)
            else:
                slot = local.sent
                if slot is None or slot.round != round:
                    raise never_sent(source, agent, round)
                age, body = 0, self.memory.sent(source, slot)
            messages.append(Message(source, weight, age, body))
        if self._rule.late:
            for message in messages:
                self.counters.ages[message.age] += 1
        mine = self._outboxes[agent].sent
        sent = self.memory.empty if mine is None else self.memory.sent(agent, mine)
        parts: Iterable[slice] = WHOLE
        if claims or self._waits.trace:
            parts = self._arrivals(agent, round, claims)
        return Received(sent, tuple(messages), parts, plan.row.own, agent)

    def close(self) -> None:
        """Complete the sends, cancel the receives, free requests and buffers. Collective.

        Works after a failure, too: what nobody takes within a few seconds is abandoned. A second
        call does nothing.
        """
        if not self._outboxes:
            return
        timeout = self._waits.deadline.timeout
        if self._rule.late:
            # What comes now may take the place of what the last round still computes with.
            with suppress(RuntimeError):
                self.memory.turn()
            # After a failure nothing comes, and the others already wait for us.
            self._linger(timeout / 4, self._all_taken)
        self.memory.close(self._progress)
        boxes = self._outboxes.values()
        routes = [route for outbox in boxes for route in outbox.routes()]
        self._linger(timeout, lambda: not any(route.in_flight() for route in routes))
        # Others may still be sending what we must not cancel.
        self._place.barrier()
        self._rule.close()
        routes += [route for outbox in boxes for route in outbox.abandoned]
        stuck = [route for route in routes if route.in_flight()]
        for route in routes:
            if route not in stuck:
                route.close()
        self._outboxes.clear()
        self._plans.clear()
        self._place.on_close(self, stuck)

    def _turn(self, round: int) -> None:
        """Give back what the earlier round has used."""
        # What this round uses again must not be among what still waits for the device.
        self.memory.turn()
        self._rule.turn(round)
        self._round = round
        self._place.on_round(round)

    def _expect(self, agent: int, plan: _Plan) -> None:
        """Be ready for the messages that ``agent`` receives, and drive all that travel."""
        for source in plan.remote:
            self._rule.expect(source, agent, self._round)
        if self._progress is not None and (plan.remote or plan.destinations):
            self._progress.resume()

    def _make_plan(self, row: Row) -> _Plan:
        members, here = self._place.members, self._place.rank
        ranks: dict[int, int] = {}
        for target in row.targets:
            ranks.setdefault(members.rank_of(target), target)
        ranks.pop(here, None)
        remote = tuple(source for source in row.sources if source not in self._outboxes)
        return _Plan(row, tuple(ranks.items()), remote)

    def _count(self, routes: list[Route]) -> None:
        """Count one message on each of ``routes``."""
        counters, nbytes, near = self._waits.counters, self.format.nbytes, self._place.near
        far = sum(route.rank not in near for route in routes)
        counters.messages_sent += len(routes)
        counters.bytes_sent += len(routes) * nbytes
        counters.messages_to_nodes += far
        counters.bytes_to_nodes += far * nbytes

    def _arrivals(
        self, agent: int, round: int, claims: list[tuple[int, Claim]]
    ) -> Iterator[slice]:
        """Yield the parts of the vector, each once all ``claims`` hold it where it is mixed."""
        trace, waits, memory = self._waits.trace, self._waits, self.memory
        for chunk, part in enumerate(self.format.parts):
            for source, claim in claims:
                if not claim.arrived(chunk):
                    waits.until(lambda: claim.arrived(chunk), agent, source, round)
                if memory.uploads:
                    memory.land(source, claim, chunk)
            if trace is None:
                yield part
            else:
                began = time.perf_counter()
                yield part
                trace("mix", began, time.perf_counter(), {"agent": agent, "round": round})
        self._rest()

    def _rest(self) -> None:
        """Let the progress thread sleep once nothing of ours is in flight."""
        progress = self._progress
        if progress is not None and progress.busy and not self.memory.busy():
            if self._rule.quiet() and all([box.done() for box in self._outboxes.values()]):
                progress.suspend()

    def _all_taken(self) -> bool:
        """Take what comes; say whether nothing is on its way, neither in nor out."""
        with suppress(RuntimeError):
            self.memory.pump()
        sent = [outbox.done() for outbox in self._outboxes.values()]
        return self._rule.settled(self._round) and all(sent)

    def _linger(self, timeout: float, done: Callable[[], bool]) -> None:
        """Wait until ``done``, for a few seconds at most."""
        deadline = self._waits.deadline
        with suppress(StallError):
            Deadline(min(timeout, GRACE), deadline.poll).until(done, lambda waited: "")
