"""The schedule of the agents that are left when others are lost, the same in every process.

It is a function of the schedule of all agents and of who is left, whatever was lost first. A graph
keeps its links among those who are left. If it falls into components these are linked in a chain,
each by its two agents with the fewest links, so that no agent gets many more; then the weights are
made anew by the same rule, or by that of Metropolis where the rule was for a regular graph or the
weights were given. Random and complete graphs are drawn or made again among those who are left.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import networkx as nx
import numpy as np
from scipy.sparse import csr_array

from decdpo.topology.mixing import CompleteMatrix
from decdpo.topology.participation import Participation
from decdpo.topology.row import Mixing, Row
from decdpo.topology.schedule import Averaging, Isolated, Static
from decdpo.topology.varying import OnePeerExponential, RandomMatching, text_digest
from decdpo.topology.weights import RULES
from decdpo.topology.weights import pairs as pair_weights

REGULAR = ("uniform", "file", "")
"""Rules that do not suit what is left of a graph: for regular graphs, and weights that are given.
"""


SILENT = Row(1.0, (), (), (), active=False)
"""The row of an agent that takes no part."""


class Full(Protocol):
    """The schedule of all agents, which what is left of them is made from."""

    def mixing(self, round: int) -> Mixing: ...

    @property
    def digest(self) -> str: ...

    @property
    def rho(self) -> float | None: ...


class Left:
    """A schedule of the agents that are left; ``left_of`` makes it.

    agents : ascending. rho : factor by which a round contracts disagreement, None if no graph
    decides that. notes : what was changed to keep the agents together, in words.
    """

    def __init__(
        self, agents: tuple[int, ...], inner: Any, digest: str, notes: tuple[str, ...]
    ) -> None:
        self.agents = agents
        self.digest = digest
        self.rho: float | None = inner.rho
        self.notes = notes
        self._inner = inner
        self._seen: Relabelled | None = None

    def mixing(self, round: int) -> "Relabelled":
        """Return the mixing weights of ``round``; the same object while they stay the same."""
        inner = self._inner.mixing(round)
        if self._seen is None or self._seen.inner is not inner:
            self._seen = Relabelled(inner, self.agents)
        return self._seen


class Relabelled:
    """A mixing of agents 0 ... m-1, which stand for ``agents``, ascending."""

    def __init__(self, inner: Mixing, agents: tuple[int, ...]) -> None:
        self.inner = inner
        self._agents = agents
        self._rows: dict[int, Row] = {}

    def row(self, agent: int) -> Row:
        """Return the row of ``agent``, the same object every time; a silent one if it is lost."""
        row = self._rows.get(agent)
        if row is None and agent not in self._agents:
            row = SILENT
        if row is None:
            names, found = self._agents, self.inner.row(self._agents.index(agent))
            row = self._rows[agent] = Row(
                found.own,
                tuple(names[j] for j in found.sources),
                found.weights,
                tuple(names[j] for j in found.targets),
                found.active,
            )
        return row


def left_of(schedule: Full, agents: Sequence[int]) -> Left:
    """Return the schedule of ``agents``, ascending, that ``schedule`` of all agents leaves."""
    agents = tuple(agents)
    inner, notes = _inner(schedule, agents)
    digest = text_digest(f"what {schedule.digest} leaves of agents {agents}")
    return Left(agents, inner, digest, notes)


def _inner(schedule: Full, agents: tuple[int, ...]) -> tuple[Any, tuple[str, ...]]:
    """Return the schedule of agents 0 ... m-1 that stand for ``agents``, and the notes."""
    count = len(agents)
    if isinstance(schedule, OnePeerExponential):
        return OnePeerExponential(count), ()
    if isinstance(schedule, RandomMatching):
        return RandomMatching(count, schedule.seed), ()
    if isinstance(schedule, Participation):
        return schedule.among(agents), ()
    if isinstance(schedule, Averaging):
        return Averaging(range(count)), ()
    if isinstance(schedule, Isolated):
        return schedule, ()
    if not isinstance(schedule, Static):
        raise TypeError(f"{type(schedule).__name__} has no part for some of its agents")
    if isinstance(schedule.matrix, CompleteMatrix):
        own = 1 / count
        lazy = schedule.rule == "lazy"
        return Static(CompleteMatrix(count, (1 + own) / 2 if lazy else own), schedule.rule), ()
    return _static(schedule, agents)


def _static(schedule: Static, agents: tuple[int, ...]) -> tuple[Static, tuple[str, ...]]:
    assert not isinstance(schedule.matrix, CompleteMatrix)
    support = csr_array(schedule.matrix.support.tocsr()[list(agents)][:, list(agents)])
    support.setdiag(0)
    support.eliminate_zeros()
    pushes = not (schedule.matrix.doubly_stochastic or schedule.pairs)
    # Entry (i, j) says that i receives from j.
    graph = nx.from_scipy_sparse_array(support.T, create_using=nx.DiGraph)
    notes = []
    if schedule.directed and not pushes:
        graph = graph.to_undirected()
        notes.append("its links now go both ways")
    elif not schedule.directed:
        graph = graph.to_undirected()
    links = connect(graph)
    if links:
        named = ", ".join(f"{agents[i]}-{agents[j]}" for i, j in links)
        notes.append(f"it fell apart and was linked again by {named}")
    if schedule.pairs:
        kept = [schedule.pairs[agent] for agent in agents]
        return Static(pair_weights(graph, kept), schedule.rule, kept), tuple(notes)
    rule = "push" if pushes else schedule.rule
    if rule in REGULAR:
        if rule != "uniform" or not _regular(graph):
            rule = "metropolis"
            if schedule.rule != "metropolis":
                notes.append("its weights are now Metropolis weights")
    return Static(RULES[rule](graph), rule), tuple(notes)


def connect(graph: nx.Graph) -> list[tuple[int, int]]:
    """Link the (strongly) connected components of ``graph`` in a chain; return the new links.

    They are taken by their lowest agents. A link goes both ways, between the agents of two
    components that have the fewest links, the lowest first.
    """
    find = nx.strongly_connected_components if graph.is_directed() else nx.connected_components
    parts = sorted((sorted(part) for part in find(graph)), key=lambda part: part[0])
    links = []
    for one, other in zip(parts, parts[1:]):
        i, j = (min(part, key=lambda k: (graph.degree(k), k)) for part in (one, other))
        graph.add_edge(i, j)
        if graph.is_directed():
            graph.add_edge(j, i)
        links.append((i, j))
    return links


def _regular(graph: nx.Graph) -> bool:
    return len(np.unique([degree for _, degree in graph.degree()])) == 1
