"""The exchange between ranks: slots, edges and plans; how letters move is the edges' business.

Each local agent owns two send slots, used in even and odd rounds. ``start`` waits until the slot is
free, copies the message chunk by chunk and sends every chunk as soon as it lies there, once per
destination rank. Each remote agent that somebody here listens to has one edge, which yields one
slot per round. Slots are given back at the first ``start`` of a later round.

Why nothing can deadlock: consider the rank with the lowest round t. Whatever it waits for, a letter
of round t or a free slot last used in round t - 2, needs only that others have started round t, or
finished round t - 2. They have, and they keep the library's progress going while they wait
themselves.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from decdpo.comm.local import check_message, check_start, never_sent
from decdpo.comm.p2p import Edge, Route
from decdpo.comm.placement import Placement
from decdpo.comm.progress import Progress
from decdpo.comm.slots import Format, Memory, Slot, aligned
from decdpo.comm.waiting import Patience
from decdpo.comm.window import ReadInPlace, Window, WindowEdge, announce
from decdpo.comm.world import Counters, Trace
from decdpo.errors import StallError
from decdpo.messages import Inbox, Letter
from decdpo.topology.row import Row

WHOLE = (slice(0, None),)
"""The parts of a vector that is here."""

GRACE = 5.0
"""Seconds that a closing exchange waits for its last messages to be taken."""


class Claim(Protocol):
    """A remote letter of this round, here or on its way."""

    body: Tensor

    def arrived(self, chunk: int) -> bool: ...

    def release(self) -> None: ...


class Wiring(NamedTuple):
    """How the ranks are connected.

    comm : a communicator for this exchange alone. placement : of agents on ranks. rank : this one.
    node_ranks : rank on this node by rank, for the neighbours to be reached through ``window``.
    window : shared memory, or None. progress : drives messages during compute, or None. barrier :
    of all ranks. on_node : all ranks of this node, however they are reached.
    """

    comm: Any
    placement: Placement
    rank: int
    node_ranks: dict[int, int]
    window: Window | None
    progress: Progress | None
    barrier: Callable[[], None]
    on_node: frozenset[int]


class _Plan(NamedTuple):
    """What a row means here: which ranks hear the agent (each by one listener), whom it hears."""

    row: Row
    destinations: tuple[tuple[int, int], ...]
    remote: tuple[int, ...]


class _Outbox:
    """One agent's send slots, and in each slot the ways it is sent."""

    def __init__(self, agent: int, depth: int) -> None:
        self.agent = agent
        self.slots: list[Slot | None] = [None] * depth
        self.routes: tuple[dict[int, Route | ReadInPlace], ...] = tuple({} for _ in range(depth))
        self.active: list[list[Route | ReadInPlace]] = [[] for _ in range(depth)]
        self.plan: _Plan | None = None
        self.sent: Slot | None = None


class MpiExchange:
    """Carries vectors between agents on different ranks of a communicator, and within a rank.

    Vectors live on the CPU; ``DeviceExchange`` is for those of a device.

    format : of the messages. patience : how to wait. on_round : told every round that begins.
    on_close : called when everything has been freed. depth : send slots of an agent; 2, unless
    letters may be late.
    """

    def __init__(
        self,
        format: Format,
        wiring: Wiring,
        patience: Patience,
        on_round: Callable[[int], None] = lambda round: None,
        depth: int = 2,
    ) -> None:
        self.counters = Counters()
        self.trace: Trace | None = None
        self.transport = ""
        self.doubts: tuple[str, ...] = ()
        self.message_bytes = format.size * format.dtype.itemsize
        self._format = format
        self._wiring = wiring
        self._patience = patience
        self._on_round = on_round
        self._round = -1
        mine = wiring.placement.agents_of(wiring.rank)
        self._agents = range(mine[0], mine[-1] + 1)
        self._depth = depth
        self._memory: Memory = aligned
        self._outboxes = {agent: _Outbox(agent, depth) for agent in mine}
        self._edges: dict[int, Edge | WindowEdge] = {}
        self._claims: dict[int, Claim] = {}
        self._empty = torch.empty(0, dtype=format.dtype)
        self.abandoned: list[Route] = []
        self.on_close: Callable[[], None] | None = None

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends with this ``row``: one to each target."""
        return len(row.targets)

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Copy ``message`` (M,), post its sends and the receives for ``row``, and return at once.

        Waits only while the message that used the slot before has not been taken everywhere.
        """
        began = time.perf_counter() if self.trace else 0.0
        newest = check_start(self._agents, agent, self._round, round, row, message)
        if newest != self._round:
            self._turn(newest)
        outbox = self._outboxes[agent]
        plan = outbox.plan
        if plan is None or plan.row != row:
            plan = outbox.plan = self._make_plan(row)
        self._expect(plan.remote, round)
        outbox.sent = None
        if message is not None:
            self._send(outbox, plan, round, message)
        if self._wiring.progress is not None and (plan.remote or plan.destinations):
            self._wiring.progress.resume()
        if self.trace:
            self.trace("post", began, time.perf_counter(), {"agent": agent, "round": round})

    def finish(self, agent: int, round: int) -> Inbox:
        """Return what ``agent`` hears in ``round``; its parts arrive while they are used."""
        outbox = self._outboxes[agent]
        plan = outbox.plan
        if plan is None or round != self._round:
            raise ValueError(f"agent {agent} has not started round {round}")
        letters = []
        for source, weight in zip(plan.row.sources, plan.row.weights):
            if source in self._agents:
                slot = self._outboxes[source].sent
                if slot is None or slot.round != round:
                    raise never_sent(source, agent, round)
                age, body = 0, self._spoken(source, slot)
            else:
                age, body = self._letter(source, agent, round)
            letters.append(Letter(source, weight, age, body))
        sent = self._empty if outbox.sent is None else self._spoken(agent, outbox.sent)
        arrivals = self._arrivals(agent, round, plan.remote)
        return Inbox(sent, tuple(letters), arrivals, plan.row.own)

    def close(self) -> None:
        """Complete the sends, cancel the receives, free requests and buffers. Collective.

        Works after a failure, too: what nobody takes within a few seconds is abandoned. A second
        call does nothing.
        """
        if not self._outboxes:
            return
        routes = [
            route
            for outbox in self._outboxes.values()
            for by_rank in outbox.routes
            for route in by_rank.values()
            if isinstance(route, Route)
        ]
        with suppress(StallError):
            brief = Patience(min(self._patience.timeout, GRACE), self._patience.poll)
            brief.until(lambda: all(route.done() for route in routes), lambda waited: "")
        # Others may still be sending what we must not cancel.
        self._wiring.barrier()
        for edge in self._edges.values():
            edge.close()
        for route in routes:
            if route.done():
                route.close()
            else:
                self.abandoned.append(route)
        self._outboxes.clear()
        self._claims.clear()
        self._edges.clear()
        if self.on_close is not None:
            self.on_close()

    def _expect(self, remote: tuple[int, ...], round: int) -> None:
        """Be ready for the letters of ``round`` of remote agents."""
        for source in remote:
            if source not in self._claims:
                self._claims[source] = self._edge(source).claim(round)

    def _turn(self, round: int) -> None:
        """Give back what the earlier round has used."""
        for source, claim in self._claims.items():
            self._complete(source, claim)
            self._give_back(claim)
        self._claims.clear()
        self._round = round
        self._on_round(round)

    def _give_back(self, claim: Claim) -> None:
        """Let the next letter come into the slot of one that has been read."""
        claim.release()

    def _complete(self, source: int, claim: Claim) -> None:
        """Wait for a letter that nobody has read to its end: its slot cannot be reused before."""
        last = len(self._format.parts) - 1
        if not claim.arrived(last):
            plans = ((agent, outbox.plan) for agent, outbox in self._outboxes.items())
            listener = next(agent for agent, plan in plans if plan and source in plan.remote)
            self._wait(lambda: claim.arrived(last), listener, source, self._round)

    def _make_plan(self, row: Row) -> _Plan:
        rank_of, here = self._wiring.placement.rank_of, self._wiring.rank
        ranks: dict[int, int] = {}
        for target in row.targets:
            ranks.setdefault(rank_of(target), target)
        ranks.pop(here, None)
        remote = tuple(source for source in row.sources if source not in self._agents)
        return _Plan(row, tuple(ranks.items()), remote)

    def _edge(self, source: int) -> Edge | WindowEdge:
        edge = self._edges.get(source)
        if edge is None:
            comm, placement, _, node_ranks, window, *_ = self._wiring
            rank = placement.rank_of(source)
            if window is not None and rank in node_ranks:
                edge = WindowEdge(window, self._format, node_ranks[rank], rank, source)
            else:
                edge = Edge(comm, self._format, source, rank, self._memory)
            self._edges[source] = edge
        return edge

    def _route(self, outbox: _Outbox, parity: int, rank: int, listener: int) -> Route | ReadInPlace:
        route = outbox.routes[parity].get(rank)
        if route is None:
            comm, _, _, node_ranks, window, *_ = self._wiring
            slot = outbox.slots[parity]
            assert slot is not None
            if window is not None and rank in node_ranks:
                receipts = window.receipt(window.me, outbox.agent, parity)
                route = ReadInPlace(slot, receipts, node_ranks[rank], rank, listener)
            else:
                route = Route(comm, slot, outbox.agent, rank, listener)
            outbox.routes[parity][rank] = route
        return route

    def _slot(self, outbox: _Outbox, parity: int) -> Slot:
        slot = outbox.slots[parity]
        if slot is None:
            window = self._wiring.window
            if window is None:
                slot = Slot(self._format, self._memory(self._format.nbytes))
            else:
                slot = window.slot(self._format, window.me, outbox.agent, parity)
            slot.label(outbox.agent)
            outbox.slots[parity] = slot
        return slot

    def _spoken(self, agent: int, slot: Slot) -> Tensor:
        """Return what ``agent`` sent this round, where it can be mixed."""
        return slot.body

    def _heard(self, source: int) -> Tensor:
        """Return what a remote agent sent this round, where it can be mixed."""
        return self._claims[source].body

    def _letter(self, source: int, agent: int, round: int) -> tuple[int, Tensor]:
        """Return the age and the body of the letter that ``agent`` hears from a remote agent."""
        return 0, self._heard(source)

    def _landed(self, chunk: int, remote: tuple[int, ...]) -> None:
        """Do what is left to do once all ``remote`` letters hold ``chunk``."""

    def _reclaim(self, outbox: _Outbox, parity: int) -> None:
        """Wait until the slot's last message has been taken by all its readers."""
        for route in outbox.active[parity]:
            if not route.done():
                slot = outbox.slots[parity]
                assert slot is not None
                self._wait(route.done, outbox.agent, route.agent, slot.round)
        outbox.active[parity].clear()

    def _send(self, outbox: _Outbox, plan: _Plan, round: int, message: Tensor) -> None:
        parity = round % self._depth
        slot = self._slot(outbox, parity)
        check_message(slot.body, outbox.agent, message)
        self._reclaim(outbox, parity)
        slot.date(round)
        outbox.sent = slot
        active = outbox.active[parity]
        by_message: list[Route] = []
        for rank, listener in plan.destinations:
            route = self._route(outbox, parity, rank, listener)
            active.append(route)
            if isinstance(route, Route):
                by_message.append(route)
        self._count(active)
        in_place = len(by_message) < len(active)
        self._fill(outbox, slot, message, partial(self._post, slot, by_message, in_place))

    def _count(self, routes: list[Route | ReadInPlace]) -> None:
        """Count one message on each of ``routes``."""
        counters, nbytes, near = self.counters, self._format.nbytes, self._wiring.on_node
        far = sum(route.rank not in near for route in routes)
        counters.messages_sent += len(routes)
        counters.bytes_sent += len(routes) * nbytes
        counters.messages_to_nodes += far
        counters.bytes_to_nodes += far * nbytes

    def _fill(
        self, outbox: _Outbox, slot: Slot, message: Tensor, post: Callable[[int], None]
    ) -> None:
        """Copy ``message`` into ``slot``, posting every chunk as soon as it lies there."""
        parts = self._format.parts
        if len(parts) == 1:
            slot.body.copy_(message)
            post(0)
            return
        for chunk, part in enumerate(parts):
            slot.body[part].copy_(message[part])
            post(chunk)

    def _post(self, slot: Slot, routes: list[Route], in_place: bool, chunk: int) -> None:
        if in_place:
            assert self._wiring.window is not None
            self._wiring.window.sync()
            announce(slot, chunk)
        for route in routes:
            route.start(chunk)

    def _arrivals(self, agent: int, round: int, remote: tuple[int, ...]) -> Iterable[slice]:
        """Return the parts of the vector, each once all letters hold it."""
        return self._landings(agent, round, remote) if remote or self.trace else WHOLE

    def _landings(self, agent: int, round: int, remote: tuple[int, ...]) -> Iterator[slice]:
        claims = [(source, self._claims[source]) for source in remote]
        trace = self.trace
        for chunk, part in enumerate(self._format.parts):
            for source, claim in claims:
                if not claim.arrived(chunk):
                    self._wait(lambda: claim.arrived(chunk), agent, source, round)
            self._landed(chunk, remote)
            if trace is None:
                yield part
            else:
                began = time.perf_counter()
                yield part
                trace("mix", began, time.perf_counter(), {"agent": agent, "round": round})
        self._rest()

    def _rest(self) -> None:
        """Let the progress thread sleep once nothing of ours is in flight."""
        progress = self._wiring.progress
        if progress is not None and progress.busy:
            last = len(self._format.parts) - 1
            routes = (r for box in self._outboxes.values() for a in box.active for r in a)
            if all(c.arrived(last) for c in self._claims.values()) and all(
                route.done() for route in routes
            ):
                progress.suspend()

    def _wait(self, done: Callable[[], bool], agent: int, neighbour: int, round: int) -> None:
        """Wait until ``done`` and book the time on ``neighbour``."""
        began = time.perf_counter()
        place = f"agent {neighbour}"
        if neighbour not in self._agents:
            place += f" (process {self._wiring.placement.rank_of(neighbour)})"
        seconds = self._patience.until(
            done,
            lambda waited: f"agent {agent} waited {waited:.1f} s for {place} in round {round}",
            "look at what that process printed last; raise comm.timeout if it only is slow",
        )
        counters = self.counters
        counters.wait_seconds += seconds
        waits = counters.wait_by_neighbour
        waits[neighbour] = waits.get(neighbour, 0.0) + seconds
        if self.trace:
            spot = {"agent": agent, "round": round, "neighbour": neighbour}
            self.trace("wait", began, time.perf_counter(), spot)
