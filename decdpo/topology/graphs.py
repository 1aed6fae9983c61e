"""Graphs of agents: who may talk to whom.

Each function maps the number of agents n to a networkx graph on the nodes 0 ... n-1 without
self-loops (an agent always counts itself). An edge (j, i) of a directed graph means that j sends
to i.
"""

from collections.abc import Callable, Iterable
from math import isqrt, log
from pathlib import Path

import networkx as nx
import numpy as np

from decdpo.errors import TopologyError
from decdpo.rng import Stream, generator
from decdpo.topology.files import read_graph

MAX_EDGES = 2_000_000
ATTEMPTS = 20


def ring(num_agents: int) -> nx.Graph:
    """Return the cycle 0 - 1 - ... - (n-1) - 0; one edge for two agents, none for one."""
    return _from_edges(num_agents, _shifted(num_agents, (1,)))


def path(num_agents: int) -> nx.Graph:
    """Return the line 0 - 1 - ... - (n-1)."""
    return _from_edges(num_agents, ((i, i + 1) for i in range(num_agents - 1)))


def star(num_agents: int) -> nx.Graph:
    """Return the star whose hub is agent 0."""
    return _from_edges(num_agents, ((0, i) for i in range(1, num_agents)))


def complete(num_agents: int) -> nx.Graph:
    """Return the graph in which all agents are neighbours."""
    _refuse_crowded("complete", num_agents * (num_agents - 1) // 2)
    pairs = ((i, j) for i in range(num_agents) for j in range(i + 1, num_agents))
    return _from_edges(num_agents, pairs)


def torus_shape(num_agents: int) -> tuple[int, int]:
    """Return (rows, columns), rows <= columns, of the most nearly square torus of n agents.

    Raises ``TopologyError`` for a prime n, which would be a mere ring, naming the nearest usable n.
    """
    rows = _largest_divisor(num_agents)
    if rows == 1 and num_agents > 1:
        below = next((n for n in range(num_agents, 3, -1) if _largest_divisor(n) > 1), None)
        above = next(n for n in range(num_agents, 2 * num_agents + 1) if _largest_divisor(n) > 1)
        raise TopologyError(
            f"a torus cannot have {num_agents} agents: {num_agents} is prime",
            f"take {f'{below} or ' if below else ''}{above} agents, or a ring",
        )
    return rows, num_agents // rows


def torus(num_agents: int) -> nx.Graph:
    """Return the two-dimensional periodic grid of ``torus_shape``, numbered row by row.

    Agent r * columns + c has the neighbours (r +- 1, c) and (r, c +- 1), wrapped round. A side of
    length two has one edge where a longer one has two.
    """
    rows, columns = torus_shape(num_agents)
    edges = [(r * columns + c, r * columns + (c + 1) % columns)
             for r in range(rows) for c in range(columns)]  # fmt: skip
    edges += [(i, (i + columns) % num_agents) for i in range(num_agents)]
    return _from_edges(num_agents, edges)


def hypercube(num_agents: int) -> nx.Graph:
    """Return the hypercube: neighbours are the ids that differ in one bit.

    Raises ``TopologyError`` unless n is a power of two.
    """
    if num_agents & (num_agents - 1):
        below = 1 << (num_agents.bit_length() - 1)
        raise TopologyError(
            f"a hypercube cannot have {num_agents} agents: not a power of two",
            f"take {below} or {2 * below} agents",
        )
    bits = [1 << k for k in range(num_agents.bit_length() - 1)]
    return _from_edges(num_agents, ((i, i ^ b) for i in range(num_agents) for b in bits))


def hops(num_agents: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ..., 2**(tau-1) with tau = ceil(log2 n): the hops of exponential graphs."""
    return tuple(1 << k for k in range((num_agents - 1).bit_length()))


def exponential(num_agents: int) -> nx.DiGraph:
    """Return the static exponential graph: agent i receives from (i + 2**k) mod n, k = 0 ... tau-1.

    Directed, with in- and out-degree tau = ceil(log2 n). Ying et al., "Exponential graph is
    provably efficient for decentralized deep training", 2021; the hops are those of Assran et al.,
    "Stochastic gradient push for distributed deep learning", 2019.
    """
    arcs = ((j, i) for i, j in _shifted(num_agents, hops(num_agents)))
    return _from_edges(num_agents, arcs, directed=True)


def exponential_undirected(num_agents: int) -> nx.Graph:
    """Return the exponential graph with every arc made an edge: hops of +-2**k."""
    return _from_edges(num_agents, _shifted(num_agents, hops(num_agents)))


def two_clusters(num_agents: int) -> nx.Graph:
    """Return two well-connected halves joined by one edge, the bridge.

    The halves hold ceil(n/2) and floor(n/2) agents; each is an undirected exponential graph (up to
    four agents: complete), so that the bridge alone limits the mixing. It joins the first agents
    of the halves.
    """
    half = (num_agents + 1) // 2
    edges = list(exponential_undirected(half).edges)
    if num_agents > 1:
        edges += [(half + i, half + j) for i, j in exponential_undirected(num_agents - half).edges]
        edges.append((0, half))
    return _from_edges(num_agents, edges)


def random_regular(num_agents: int, degree: int | None = None, *, seed: int = 0) -> nx.Graph:
    """Return a connected random ``degree``-regular graph, with high probability an expander.

    degree : 4 by default, or n-1 where there are fewer than five agents; degree * n must be even.
    Raises ``TopologyError`` for an impossible degree, or if no sample is connected.
    """
    n = num_agents
    degree = min(4, n - 1) if degree is None else degree
    if not 0 <= degree < n or (degree * n) % 2:
        why = "the product is odd" if 0 <= degree < n else f"it must lie in 0 ... {n - 1}"
        raise TopologyError(
            f"no graph of {n} agents is {degree}-regular: {why}",
            "choose a degree below the number of agents, such that degree times agents is even",
        )
    _refuse_crowded("random_regular", n * degree // 2)

    def sample(rng: np.random.Generator) -> nx.Graph:
        if degree > n // 2:  # the pairing model all but never yields a dense simple graph
            return nx.complement(nx.random_regular_graph(n - 1 - degree, n, seed=rng))
        return nx.random_regular_graph(degree, n, seed=rng)

    return _connected(sample, seed, f"random_regular of degree {degree} on {n} agents")


def erdos_renyi(num_agents: int, probability: float | None = None, *, seed: int = 0) -> nx.Graph:
    """Return a connected Erdos-Renyi graph G(n, p).

    probability : of each edge; 2 ln n / n by default, twice the threshold of connectedness.
    Raises ``TopologyError`` for p outside [0, 1], or if no sample is connected.
    """
    n = num_agents
    p = min(1.0, 2 * log(n) / n) if probability is None else _probability(probability)
    _refuse_crowded("erdos_renyi", int(p * n * (n - 1) / 2))
    what = f"erdos_renyi of {n} agents and edge probability {p:g}"
    return _connected(lambda rng: nx.fast_gnp_random_graph(n, p, seed=rng), seed, what)


def small_world(
    num_agents: int,
    degree: int | None = None,
    probability: float | None = None,
    *,
    seed: int = 0,
) -> nx.Graph:
    """Return a connected small world: a ring lattice with some edges rewired at random.

    Watts and Strogatz, "Collective dynamics of 'small-world' networks", 1998.
    degree : of the lattice, even; 4 by default, 2 for three or four agents. Up to two agents are
    simply joined. probability : that an edge is rewired; 0.1 by default.
    """
    n = num_agents
    p = 0.1 if probability is None else _probability(probability)
    if n <= 2 and degree is None:
        return path(n)
    degree = (4 if n > 4 else 2) if degree is None else degree
    if not 2 <= degree < n or degree % 2:
        raise TopologyError(
            f"a small world of {n} agents cannot have degree {degree}",
            f"choose an even degree of at least 2 and at most {n - 1}",
        )
    _refuse_crowded("small_world", n * degree // 2)
    what = f"small_world of {n} agents, degree {degree}, rewired with probability {p:g}"
    return _connected(lambda rng: nx.watts_strogatz_graph(n, degree, p, seed=rng), seed, what)


_PLAIN: dict[str, Callable[[int], nx.Graph]] = {
    f.__name__: f
    for f in (
        ring, path, star, complete, torus, hypercube, exponential, exponential_undirected,
        two_clusters,
    )  # fmt: skip
}


def make_graph(
    graph: str,
    num_agents: int,
    *,
    seed: int = 0,
    degree: int | None = None,
    probability: float | None = None,
    file: str | Path | None = None,
) -> nx.Graph:
    """Return the static graph of that name (``names.GRAPHS`` without the time-varying ones).

    Raises ``TopologyError`` if the number of agents or an option does not suit the graph.
    """
    if num_agents < 1:
        raise TopologyError(
            f"a graph of {num_agents} agents is empty", "take at least one agent"
        )
    if graph == "random_regular":
        return random_regular(num_agents, degree, seed=seed)
    if graph == "erdos_renyi":
        return erdos_renyi(num_agents, probability, seed=seed)
    if graph == "small_world":
        return small_world(num_agents, degree, probability, seed=seed)
    if graph == "file":
        if file is None:
            raise TopologyError("graph 'file' without a file", "name the edge list or matrix file")
        return read_graph(file, num_agents)
    return _PLAIN[graph](num_agents)


def _from_edges(
    num_agents: int, edges: Iterable[tuple[int, int]], directed: bool = False
) -> nx.Graph:
    graph = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(num_agents))
    graph.add_edges_from((i, j) for i, j in edges if i != j)
    return graph


def _shifted(num_agents: int, shifts: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    return ((i, (i + s) % num_agents) for i in range(num_agents) for s in shifts)


def _largest_divisor(n: int) -> int:
    """Return the largest divisor of n up to its square root."""
    return next(d for d in range(isqrt(n), 0, -1) if n % d == 0)


def _probability(value: float) -> float:
    if not 0 <= value <= 1:
        raise TopologyError(f"probability = {value:g} is not in [0, 1]", "choose one in [0, 1]")
    return value


def _refuse_crowded(graph: str, edges: int) -> None:
    if edges > MAX_EDGES:
        raise TopologyError(
            f"{graph}: about {edges:,} edges, more than the {MAX_EDGES:,} that are kept in memory",
            "choose a smaller degree or probability, or an exponential graph",
        )


def _connected(
    sample: Callable[[np.random.Generator], nx.Graph], seed: int, what: str
) -> nx.Graph:
    """Return the first connected sample; attempt k draws from its own address of the stream."""
    for attempt in range(ATTEMPTS):
        graph = sample(generator(seed, Stream.TOPOLOGY, step=attempt))
        if nx.is_connected(graph):
            return graph
    parts = sorted(map(len, nx.connected_components(graph)), reverse=True)
    raise TopologyError(
        f"{what}: none of {ATTEMPTS} samples is connected; the last falls into {len(parts)} parts, "
        f"the largest of {parts[0]} agents",
        "raise the degree or probability",
    )
