"""Mixing matrices: how much each agent weighs what its neighbours send.

Row i of W holds the weights of agent i: x_i <- sum_j w_ij x_j. Plain gossip keeps the average of
all agents and reaches consensus if W is doubly stochastic, non-negative, connected and aperiodic;
push-sum needs the columns alone to sum to one. All this is checked, once, on construction.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
from scipy.sparse import csc_array, csr_array, diags_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from decdpo.errors import TopologyError
from decdpo.topology.row import Row
from decdpo.topology.spectrum import (
    column_stochastic_gap,
    doubly_stochastic_gap,
    symmetric_gap,
)

TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class MixingMatrix:
    """A sparse mixing matrix that has passed every check.

    Parameters
    ----------
    weights : (n, n) float64; w_ij is what agent i gives to the message of j.
    doubly_stochastic : whether rows must sum to one as well as columns; False for push-sum.
    name : where the weights come from, for error messages.

    Raises ``TopologyError``, naming row, column and value, if a weight is negative or not finite,
    or a sum is not 1 within 1e-12; and if the graph is disconnected or periodic.
    """

    weights: csr_array
    doubly_stochastic: bool = True
    name: str = "the mixing matrix"
    _rows: dict[int, Row] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        weights = csr_array(self.weights).astype(np.float64, copy=True)
        weights.sum_duplicates()
        weights.eliminate_zeros()
        object.__setattr__(self, "weights", weights)
        _check_entries(weights, self.name)
        _check_sums(weights.sum(axis=0), "column", self.name)
        if self.doubly_stochastic:
            _check_sums(weights.sum(axis=1), "row", self.name)
        _check_connected(weights, self.name)
        _check_aperiodic(weights, self.name)

    @property
    def num_agents(self) -> int:
        """The number of agents n."""
        return int(self.weights.shape[0])

    @cached_property
    def own(self) -> np.ndarray:
        """The agents' own weights w_ii (n,)."""
        return self.weights.diagonal()

    @cached_property
    def _columns(self) -> csc_array:
        return self.weights.tocsc()

    def row(self, agent: int) -> Row:
        """Return what ``agent`` hears and tells; the same object every time."""
        row = self._rows.get(agent)
        if row is None:
            w, c = self.weights, self._columns
            heard = slice(w.indptr[agent], w.indptr[agent + 1])
            sources, values = w.indices[heard], w.data[heard]
            others = sources != agent
            targets = c.indices[c.indptr[agent] : c.indptr[agent + 1]]
            row = self._rows[agent] = Row(
                own=float(self.own[agent]),
                sources=tuple(sources[others].tolist()),
                weights=tuple(values[others].tolist()),
                targets=tuple(targets[targets != agent].tolist()),
            )
        return row

    @cached_property
    def num_sources(self) -> np.ndarray:
        """How many neighbours each agent hears, (n,) int64."""
        return np.diff(self.weights.indptr).astype(np.int64) - (self.own != 0)

    @cached_property
    def asymmetry(self) -> tuple[int, int, float]:
        """The entry (i, j, w_ij - w_ji) where W differs most from its transpose."""
        difference = csr_array(self.weights - self.weights.T).tocoo()
        if not difference.nnz:
            return 0, 0, 0.0
        worst = int(np.abs(difference.data).argmax())
        row, column = (int(c[worst]) for c in difference.coords)
        return row, column, float(difference.data[worst])

    @property
    def symmetric(self) -> bool:
        """Whether W equals its transpose within 1e-12."""
        return abs(self.asymmetry[2]) <= TOLERANCE

    @cached_property
    def directed(self) -> bool:
        """Whether some agent hears another that does not hear it."""
        support = _support(self.weights)
        return bool(csr_array(support - support.T).count_nonzero())

    @cached_property
    def spectral_gap(self) -> float:
        """1 - rho, precise also where it is tiny."""
        if not self.doubly_stochastic:
            return column_stochastic_gap(self.weights)
        return (symmetric_gap if self.symmetric else doubly_stochastic_gap)(self.weights)

    @property
    def rho(self) -> float:
        """The factor by which a round contracts the distance to consensus.

        max(|lambda_2|, |lambda_n|) of a symmetric W; the second largest singular value of another
        doubly stochastic one; |lambda_2|, an asymptotic factor, of one for push-sum.
        """
        return 1 - self.spectral_gap

    @cached_property
    def digest(self) -> str:
        """SHA-256 of support and weights: equal on processes that mix alike."""
        w = self.weights
        digest = hashlib.sha256(f"mixing matrix of {self.num_agents} agents".encode())
        for array, kind in ((w.indptr, "<i8"), (w.indices, "<i8"), (w.data, "<f8")):
            digest.update(array.astype(kind).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class CompleteMatrix:
    """The mixing matrix of the complete graph in O(1) memory: one own weight, one for all others.

    num_agents : n. own : w_ii; the n-1 others share the rest equally.
    """

    num_agents: int
    own: float
    doubly_stochastic = True
    symmetric = True
    directed = False

    @property
    def other(self) -> float:
        """w_ij for j != i."""
        return (1 - self.own) / (self.num_agents - 1) if self.num_agents > 1 else 0.0

    @property
    def weights(self) -> csr_array:
        """The matrix itself (n, n), made on demand: n * n values."""
        n = self.num_agents
        return csr_array(np.full((n, n), self.other) + (self.own - self.other) * np.eye(n))

    @cached_property
    def _agents(self) -> tuple[int, ...]:
        return tuple(range(self.num_agents))

    @cached_property
    def _others(self) -> tuple[float, ...]:
        return (self.other,) * (self.num_agents - 1)

    def row(self, agent: int) -> Row:
        """Return what ``agent`` hears and tells: everybody, except itself."""
        others = self._agents[:agent] + self._agents[agent + 1 :]
        return Row(self.own, others, self._others, others)

    @property
    def num_sources(self) -> np.ndarray:
        """How many neighbours each agent hears, (n,) int64."""
        return np.full(self.num_agents, self.num_agents - 1)

    @property
    def rho(self) -> float:
        """|w_ii - w_ij|: every eigenvalue but the leading one is w_ii - w_ij."""
        rho = abs(self.own - self.other) if self.num_agents > 1 else 0.0
        return rho if rho > 1e-15 else 0.0

    @property
    def spectral_gap(self) -> float:
        """1 - rho."""
        return 1 - self.rho

    @property
    def digest(self) -> str:
        """SHA-256 of the number of agents and the own weight."""
        text = f"complete matrix of {self.num_agents} agents, own weight {self.own!r}"
        return hashlib.sha256(text.encode()).hexdigest()


def metropolis(graph: nx.Graph) -> MixingMatrix:
    """Return Metropolis-Hastings weights: w_ij = 1 / (1 + max(d_i, d_j)).

    Xiao, Boyd and Lall, "A scheme for robust distributed sensor fusion", 2005. Undirected graphs.
    """
    i, j, degrees = _links(graph, "metropolis")
    return _symmetric(len(degrees), i, j, 1 / (1 + np.maximum(degrees[i], degrees[j])))


def max_degree(graph: nx.Graph) -> MixingMatrix:
    """Return maximum-degree weights: w_ij = 1 / (1 + max_k d_k) on every edge. Undirected."""
    i, j, degrees = _links(graph, "max_degree")
    return _symmetric(len(degrees), i, j, np.full(len(i), 1 / (1 + degrees.max())))


def lazy(graph: nx.Graph) -> MixingMatrix:
    """Return (I + W) / 2 of the Metropolis weights: every eigenvalue is at least 0. Undirected."""
    i, j, degrees = _links(graph, "lazy")
    return _symmetric(len(degrees), i, j, 0.5 / (1 + np.maximum(degrees[i], degrees[j])))


def uniform(graph: nx.Graph) -> MixingMatrix:
    """Return w_ij = 1 / (d + 1) for every neighbour and the agent itself, on a regular graph.

    On a digraph every in-degree and every out-degree must be d. Raises ``TopologyError`` naming two
    agents of unlike degree.
    """
    support = adjacency(graph)
    for axis, kind in ((1, "in-"), (0, "out-")):
        degrees = np.asarray(support.sum(axis=axis))
        odd = int((degrees != degrees[0]).argmax())
        if degrees[odd] != degrees[0]:
            kind = kind if graph.is_directed() else ""
            raise TopologyError(
                f"uniform weights need a regular graph: agent 0 has {kind}degree "
                f"{int(degrees[0])}, agent {odd} has {int(degrees[odd])}",
                "use metropolis weights" if not kind else "use push weights, with push-sum",
            )
    return MixingMatrix((support + _identity(len(graph))) / (degrees[0] + 1))


def push(graph: nx.Graph) -> MixingMatrix:
    """Return column-stochastic weights: j gives 1 / (1 + its out-degree) to all that hear it.

    For push-sum, which corrects the bias; plain gossip would drift to a weighted average. Assran
    et al., "Stochastic gradient push", 2019. Any strongly connected graph.
    """
    support = csr_array(adjacency(graph) + _identity(len(graph)))
    sums = np.asarray(support.sum(axis=0))
    return MixingMatrix(csr_array(support @ diags_array(1 / sums)), doubly_stochastic=False)


RULES: dict[str, Callable[[nx.Graph], MixingMatrix]] = {
    f.__name__: f for f in (metropolis, max_degree, lazy, uniform, push)
}


def from_weights(weights: csr_array, graph: nx.Graph | None, name: str) -> MixingMatrix:
    """Return given ``weights`` (n, n), called ``name``, after checking that they fit ``graph``.

    Raises ``TopologyError`` if the matrix is unsound (see ``MixingMatrix``), or its support off the
    diagonal is not the graph: it names the first link that only one of them has.
    """
    matrix = MixingMatrix(weights, name=name)
    if graph is None:
        return matrix
    if len(graph) != matrix.num_agents:
        raise TopologyError(
            f"{name}: {matrix.num_agents} agents, but the graph has {len(graph)}",
            f"set the number of agents to {matrix.num_agents}",
        )
    support = _support(matrix.weights)
    own = diags_array(support.diagonal())
    difference = csr_array(support - own - adjacency(graph))
    difference.eliminate_zeros()
    if difference.nnz:
        coo = difference.tocoo()
        row, column, sign = (int(a[0]) for a in (*coo.coords, coo.data))
        fault = (
            f"is {matrix.weights[row, column]:g}, but in the graph agent {row} does not hear "
            f"agent {column}"
            if sign > 0
            else f"is 0, but in the graph agent {row} hears agent {column}"
        )
        raise TopologyError(
            f"{name}: row {row}, column {column} {fault} ({difference.nnz} such entries)",
            "make the weights non-zero exactly on the graph's edges, or take the graph from the "
            "file too (graph = 'file')",
        )
    return matrix


def adjacency(graph: nx.Graph) -> csr_array:
    """Return A (n, n) float64 with a_ij = 1 where agent i hears j, that is, j sends to i."""
    arcs = nx.to_scipy_sparse_array(
        graph, nodelist=range(len(graph)), dtype=np.float64, weight=None, format="csr"
    )
    return csr_array(arcs.T)


def require_connected(weights: csr_array, name: str) -> None:
    """Raise ``TopologyError`` unless every agent reaches every other along non-zero weights (n, n).

    The message names the components by their sizes and an agent of each.
    """
    count, label = connected_components(weights, directed=True, connection="strong")
    if count == 1:
        return
    sizes = np.bincount(label)
    firsts = np.unique(label, return_index=True)[1]
    order = np.argsort(-sizes, kind="stable")[:6]
    parts = ", ".join(f"{sizes[k]} with agent {firsts[k]}" for k in order)
    more = f", and {count - 6} more" if count > 6 else ""
    one_way = connected_components(weights, directed=False)[0] == 1
    raise TopologyError(
        f"{name} falls into {count} {'strongly connected ' if one_way else ''}components, of "
        f"sizes {parts}{more}",
        "add links between them: they could never agree"
        + (" (there are links one way only)" if one_way else ""),
    )


def require_symmetric(matrix: MixingMatrix | CompleteMatrix, reason: str) -> None:
    """Raise ``TopologyError`` naming the worst entry unless W is symmetric; ``reason`` says why."""
    if not matrix.symmetric:
        assert isinstance(matrix, MixingMatrix)
        i, j, _ = matrix.asymmetry
        raise TopologyError(
            f"{matrix.name} is not symmetric: row {i}, column {j} is {matrix.weights[i, j]:.15g}, "
            f"row {j}, column {i} is {matrix.weights[j, i]:.15g}; {reason}",
            "use an undirected graph with metropolis weights",
        )


def _links(graph: nx.Graph, rule: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both directions of all edges as agents i, j (2m,), and the degrees (n,)."""
    if graph.is_directed():
        raise TopologyError(
            f"{rule} weights need an undirected graph, and this one is directed",
            "use uniform weights (regular digraphs), or push weights with push-sum",
        )
    i, j = adjacency(graph).tocoo().coords
    return i, j, np.bincount(i, minlength=len(graph))


def _support(w: csr_array) -> csr_array:
    """Return a (n, n) matrix with a one where w has an entry."""
    return csr_array((np.ones(w.nnz), w.indices, w.indptr), shape=w.shape)


def _identity(n: int) -> csr_array:
    return csr_array(diags_array(np.ones(n)))


def _symmetric(n: int, i: np.ndarray, j: np.ndarray, off: np.ndarray) -> MixingMatrix:
    """Return the matrix with the weights ``off`` at (i, j); the diagonal completes each row."""
    weights = csr_array((off, (i, j)), shape=(n, n))
    return MixingMatrix(csr_array(weights + diags_array(1 - weights.sum(axis=1))))


def _check_entries(w: csr_array, name: str) -> None:
    bad = np.flatnonzero(~(np.isfinite(w.data) & (w.data >= 0)))
    if bad.size:
        row = int(np.searchsorted(w.indptr, bad[0], side="right")) - 1
        column = int(w.indices[bad[0]])
        own = " (its own weight: what its neighbours leave)" if row == column else ""
        raise TopologyError(
            f"{name}: row {row}, column {column} is {w.data[bad[0]]:g}{own}",
            "make every weight a number in [0, 1]",
        )


def _check_sums(sums: np.ndarray, kind: str, name: str) -> None:
    off = np.abs(sums - 1)
    worst = int(off.argmax())
    if not off[worst] <= TOLERANCE:
        raise TopologyError(
            f"{name}: {kind} {worst} sums to {sums[worst]:.15g}, not 1 "
            f"({int((off > TOLERANCE).sum())} such {kind}s)",
            "store float64 weights with all their digits, every row and every column summing to 1",
        )


def _check_connected(w: csr_array, name: str) -> None:
    require_connected(w, f"the graph of {name}")


def _check_aperiodic(w: csr_array, name: str) -> None:
    """Refuse a connected support whose cycles all share a factor: its values would oscillate."""
    if w.diagonal().any():
        return
    order, before = breadth_first_order(w, 0, directed=True)
    level = np.zeros(w.shape[0], dtype=np.int64)
    for agent in order[1:]:
        level[agent] = level[before[agent]] + 1
    i, j = w.tocoo().coords
    period = int(np.gcd.reduce(level[i] + 1 - level[j]))
    if period != 1:
        raise TopologyError(
            f"{name}: all own weights are 0 and every cycle's length is a multiple of {period}, so "
            "that the values would oscillate for ever",
            "give the agents positive own weights",
        )
