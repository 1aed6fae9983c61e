"""The sends of one agent: its slots, and for each slot the ways to the ranks that read it."""

from collections.abc import Callable, Sequence

from torch import Tensor

from decdpo.comm.checks import check_message
from decdpo.comm.links.base import Links, Memory, Route
from decdpo.comm.links.slots import Slot
from decdpo.comm.waiting import Waits

Destinations = Sequence[tuple[int, int]]
"""Ranks, each with one of the agents that listen there."""


class Outbox:
    """One agent's send slots, used round by round in turn.

    depth : their number. sent : the slot of this round's message, None if there is none.
    abandoned : ways to lost ranks, whose sends nobody takes any more.
    """

    def __init__(self, agent: int, links: Links, memory: Memory, waits: Waits, depth: int) -> None:
        self.agent = agent
        self.sent: Slot | None = None
        self.abandoned: list[Route] = []
        self._links = links
        self._memory = memory
        self._waits = waits
        self._depth = depth
        self._slots: list[Slot | None] = [None] * depth
        self._routes: tuple[dict[int, Route], ...] = tuple({} for _ in range(depth))
        self._active: list[list[Route]] = [[] for _ in range(depth)]

    def send(self, round: int, message: Tensor, destinations: Destinations) -> list[Route]:
        """Send ``message`` (M,) to ``destinations`` and return the ways it takes.

        Waits only while the message that used the slot before has not been taken everywhere.
        """
        place = round % self._depth
        slot = self._slots[place]
        if slot is None:
            slot = self._links.slot(self.agent, place)
            slot.label(self.agent)
            self._slots[place] = slot
        check_message(slot.body, self.agent, message)
        self._reclaim(place)
        slot.date(round)
        self.sent = slot
        routes = [self._route(slot, place, rank, listener) for rank, listener in destinations]
        self._active[place] = routes
        self._memory.fill(self.agent, slot, message, _poster(routes), bool(routes))
        return routes

    def send_also(self, destinations: Destinations) -> list[Route]:
        """Send this round's message to those of ``destinations`` that it does not go to yet.

        Returns the ways that are new.
        """
        slot = self.sent
        if slot is None:
            return []
        place = slot.round % self._depth
        reached = {route.rank for route in self._active[place]}
        new = [
            self._route(slot, place, rank, listener)
            for rank, listener in destinations
            if rank not in reached
        ]
        if new:
            # Another list: the earlier sends may still wait for the device.
            self._active[place] = [*self._active[place], *new]
            self._memory.repost(self.agent, slot, _poster(new))
        return new

    def forget(self, rank: int) -> None:
        """Send nothing to ``rank`` any more, and wait for nothing that it should take."""
        for place, routes in enumerate(self._routes):
            route = routes.pop(rank, None)
            if route is not None:
                self._active[place] = [r for r in self._active[place] if r is not route]
                self.abandoned.append(route)

    def done(self) -> bool:
        """Say whether everybody has taken what was sent; drives the library's progress."""
        return all([route.done() for active in self._active for route in active])

    def routes(self) -> list[Route]:
        """Return all ways of all slots."""
        return [route for by_rank in self._routes for route in by_rank.values()]

    def _route(self, slot: Slot, place: int, rank: int, listener: int) -> Route:
        route = self._routes[place].get(rank)
        if route is None:
            route = self._links.route(slot, self.agent, place, rank, listener)
            self._routes[place][rank] = route
        return route

    def _reclaim(self, place: int) -> None:
        """Wait until the slot's last message has been taken by all its readers."""
        for route in self._active[place]:
            if not route.done():
                slot = self._slots[place]
                assert slot is not None
                self._waits.until(route.done, self.agent, route.agent, slot.round)


def _poster(routes: Sequence[Route]) -> Callable[[int], None]:
    """Return what sends a chunk on all of ``routes``."""

    def post(chunk: int) -> None:
        for route in routes:
            route.start(chunk)

    return post
