"""Weights for a graph: the rules that make a mixing matrix, and matrices that are given."""

from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
from scipy.sparse import csr_array, diags_array

from decdpo.errors import TopologyError
from decdpo.topology.mixing import TOLERANCE, MixingMatrix


def metropolis(graph: nx.Graph) -> MixingMatrix:
    """Return Metropolis-Hastings weights: w_ij = 1 / (1 + max(d_i, d_j)).

    Xiao, Boyd and Lall, "A scheme for robust distributed sensor fusion based on average consensus",
    2005. Undirected graphs.
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
    """Return column-stochastic weights: j gives 1 / (1 + its out-degree) to all it sends to.

    For push-sum, which corrects the bias; plain gossip would drift to a weighted average. Assran
    et al., "Stochastic gradient push for distributed deep learning", 2019. Any strongly connected
    graph.
    """
    support = csr_array(adjacency(graph) + _identity(len(graph)))
    sums = np.asarray(support.sum(axis=0))
    return MixingMatrix(csr_array(support @ diags_array(1 / sums)), doubly_stochastic=False)


def pairs(graph: nx.Graph, counts: Sequence[int]) -> MixingMatrix:
    """Return weights that keep the mean in which agent i counts N_i times: sum_i N_i x_i / sum N.

        w_ij = N_j / max(S_i, S_j),    S_i = N_i + sum of N_k over the neighbours k of i

    counts : N, (n,) training pairs of the agents. N_i w_ij is symmetric, so that the shares of the
    pairs are kept (Metropolis et al., 1953). These are the Metropolis weights of N_i agents with
    one pair each in the place of agent i: with equal N_i they are the same bits. On the complete
    graph w_ij is agent j's share, the weight that FedAvg's server gives it. Undirected graphs.

    Raises ``TopologyError`` for an agent without pairs.
    """
    i, j, degrees = _links(graph, "pairs")
    sizes = np.array(counts, dtype=np.float64)
    if sizes.min() < 1:
        raise TopologyError(
            f"agent {int(sizes.argmin())} has no training pairs to be weighed by",
            "give every agent pairs, or use other weights",
        )
    around = sizes + np.bincount(i, weights=sizes[j], minlength=len(degrees))
    off = sizes[j] / np.maximum(around[i], around[j])
    weights = csr_array((off, (i, j)), shape=(len(sizes), len(sizes)))
    weights = csr_array(weights + diags_array(1 - weights.sum(axis=1)))
    if (sizes == sizes[0]).all():
        return MixingMatrix(weights)
    return MixingMatrix(weights, doubly_stochastic=False, shares=sizes / sizes.sum())


RULES: dict[str, Callable[[nx.Graph], MixingMatrix]] = {
    f.__name__: f for f in (metropolis, max_degree, lazy, uniform, push)
}


def from_weights(
    weights: csr_array, graph: nx.Graph | None, name: str, *, push_sum: bool = False
) -> MixingMatrix:
    """Return given ``weights`` (n, n), called ``name``, after checking that they fit ``graph``.

    push_sum : whether the algorithm can do with column-stochastic weights.

    Raises ``TopologyError`` if the matrix is unsound (see ``MixingMatrix``), or its support off the
    diagonal is not the graph: it names the first link that only one of them has.
    """
    even = bool((np.abs(weights.sum(axis=1) - 1) <= TOLERANCE).all())
    matrix = MixingMatrix(weights, doubly_stochastic=even or not push_sum, name=name)
    if graph is None:
        return matrix
    if len(graph) != matrix.num_agents:
        raise TopologyError(
            f"{name}: {matrix.num_agents} agents, but the graph has {len(graph)}",
            f"set the number of agents to {matrix.num_agents}",
        )
    support = matrix.support
    own = diags_array(support.diagonal())
    difference = csr_array(support - own - adjacency(graph))
    difference.eliminate_zeros()
    if difference.nnz:
        coo = difference.tocoo()
        row, column, sign = (int(a[0]) for a in (*coo.coords, coo.data))
        fault = (
            f"is {matrix.weights[row, column]:g}, but in the graph agent {row} does not receive "
            f"from agent {column}"
            if sign > 0
            else f"is 0, but in the graph agent {row} receives from agent {column}"
        )
        raise TopologyError(
            f"{name}: row {row}, column {column} {fault} ({difference.nnz} such entries)",
            "make the weights non-zero exactly on the graph's edges, or take the graph from the "
            "file too (graph = 'file')",
        )
    return matrix


def adjacency(graph: nx.Graph) -> csr_array:
    """Return A (n, n) float64 with a_ij = 1 where agent j sends to agent i."""
    arcs = nx.to_scipy_sparse_array(
        graph, nodelist=range(len(graph)), dtype=np.float64, weight=None, format="csr"
    )
    return csr_array(arcs.T)


def _links(graph: nx.Graph, rule: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both directions of all edges as agents i, j (2m,), and the degrees (n,)."""
    if graph.is_directed():
        raise TopologyError(
            f"{rule} weights need an undirected graph, and this one is directed",
            "use uniform weights (regular digraphs), or push weights with push-sum",
        )
    i, j = adjacency(graph).tocoo().coords
    return i, j, np.bincount(i, minlength=len(graph))


def _identity(n: int) -> csr_array:
    return csr_array(diags_array(np.ones(n)))


def _symmetric(n: int, i: np.ndarray, j: np.ndarray, off: np.ndarray) -> MixingMatrix:
    """Return the matrix with the weights ``off`` at (i, j); the diagonal completes each row."""
    weights = csr_array((off, (i, j)), shape=(n, n))
    return MixingMatrix(csr_array(weights + diags_array(1 - weights.sum(axis=1))))
