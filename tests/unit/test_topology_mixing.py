"""Mixing matrices: closed forms of their spectra, and what is refused."""

from collections.abc import Callable
from math import cos, pi

import networkx as nx
import numpy as np
import pytest
from scipy.sparse import csr_array

from decdpo.errors import TopologyError
from decdpo.topology import graphs, spectrum
from decdpo.topology.mixing import CompleteMatrix, MixingMatrix
from decdpo.topology.schedule import make_schedule
from decdpo.topology.weights import (
    RULES,
    from_weights,
    lazy,
    max_degree,
    metropolis,
    push,
    uniform,
)


def dense_rho(w: np.ndarray) -> float:
    """Return ||W - J||_2, the reference for every doubly stochastic W."""
    return float(np.linalg.norm(w - 1 / len(w), 2))


@pytest.mark.parametrize("n", [3, 4, 5, 16, 101, 499, 501, 10_000])
def test_ring_gap(n: int) -> None:
    gap = metropolis(graphs.ring(n)).spectral_gap
    closed = 1 - max((1 + 2 * cos(2 * pi / n)) / 3, abs(1 + 2 * cos(2 * pi * (n // 2) / n)) / 3)
    assert gap == pytest.approx(closed, rel=1e-6)


@pytest.mark.parametrize("n", [10, 600, 2000])
def test_path_gap(n: int) -> None:
    # all weights are 1/3: L has the eigenvalues (2 - 2 cos(pi k / n)) / 3
    gap = metropolis(graphs.path(n)).spectral_gap
    assert gap == pytest.approx((2 - 2 * cos(pi / n)) / 3, rel=1e-6)


@pytest.mark.parametrize("n", [4, 32, 10_000])
def test_star_gap_is_one_over_n(n: int) -> None:
    assert metropolis(graphs.star(n)).spectral_gap == pytest.approx(1 / n, rel=1e-7)


@pytest.mark.parametrize("bits", [1, 2, 5, 12])
def test_hypercube_gap(bits: int) -> None:
    # eigenvalues 1 - 2k/(d+1), k = 0 ... d; the last is as large as the second in modulus
    gap = uniform(graphs.hypercube(1 << bits)).spectral_gap
    assert gap == pytest.approx(2 / (bits + 1), rel=1e-9)


@pytest.mark.parametrize(("n", "rows", "columns"), [(12, 3, 4), (30, 5, 6), (10_000, 100, 100)])
def test_torus_gap(n: int, rows: int, columns: int) -> None:
    modes = [
        abs(1 + 2 * cos(2 * pi * a / rows) + 2 * cos(2 * pi * b / columns)) / 5
        for a in range(rows)
        for b in range(columns)
        if a or b
    ]
    assert metropolis(graphs.torus(n)).spectral_gap == pytest.approx(1 - max(modes), rel=1e-8)


@pytest.mark.parametrize("n", [4, 6, 16, 600, 10_000])
def test_static_exponential_gap(n: int) -> None:
    """Ying et al. 2021, proposition 1: the gap is 2 / (1 + ceil(log2 n)) for even n."""
    gap = uniform(graphs.exponential(n)).spectral_gap
    assert gap == pytest.approx(2 / (1 + (n - 1).bit_length()), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_complete_gap_is_one(n: int) -> None:
    assert metropolis(graphs.complete(n)).spectral_gap == 1
    for rule in ("metropolis", "max_degree", "uniform", "lazy"):
        matrix = make_schedule("complete", rule, n).mixing(0)
        oracle = RULES[rule](graphs.complete(n))
        assert isinstance(matrix, CompleteMatrix)
        np.testing.assert_allclose(matrix.weights.toarray(), oracle.weights.toarray(), atol=1e-15)
        assert matrix.rho == pytest.approx(oracle.rho, abs=1e-14)
        for agent in range(n):
            ours, theirs = matrix.row(agent), oracle.row(agent)
            assert (ours.sources, ours.targets) == (theirs.sources, theirs.targets)
            assert ours.weights == pytest.approx(theirs.weights, abs=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: metropolis(graphs.erdos_renyi(300, seed=1)),
        lambda: max_degree(graphs.erdos_renyi(300, seed=1)),
        lambda: lazy(graphs.small_world(300, seed=1)),
        lambda: metropolis(graphs.two_clusters(300)),
        lambda: uniform(graphs.random_regular(300, 3, seed=1)),
        lambda: uniform(graphs.exponential(301)),
        lambda: MixingMatrix(_directed_ring(300, 0.5)),
        lambda: MixingMatrix(_bipartite_heavy(300)),
    ],
)
def test_the_sparse_solvers_agree_with_dense_ones(
    make: Callable[[], MixingMatrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = dense_rho(make().weights.toarray())
    monkeypatch.setattr(spectrum, "DENSE", 10)
    assert make().rho == pytest.approx(expected, rel=1e-9)
    # when the first Lanczos run, the direct one, does not converge, a factorisation takes over
    solve, answers = spectrum._extreme, [None]
    monkeypatch.setattr(
        spectrum, "_extreme", lambda apply, n: answers.pop() if answers else solve(apply, n)
    )
    assert make().rho == pytest.approx(expected, rel=1e-9)
    assert not answers


def _directed_ring(n: int, own: float) -> csr_array:
    return csr_array(own * np.eye(n) + (1 - own) * np.roll(np.eye(n), 1, axis=1))


def _bipartite_heavy(n: int) -> csr_array:
    """Return a ring whose small own weights bring lambda_n, not lambda_2, closest to 1."""
    ring = np.roll(np.eye(n), 1, axis=1)
    return csr_array(1e-6 * np.eye(n) + (0.5 - 5e-7) * (ring + ring.T))


def test_bipartite_ring_is_limited_by_its_last_eigenvalue() -> None:
    # cos(pi) = -1: lambda_n = -(1 - 2e-6), while lambda_2 = cos(2 pi / 300) (1 - 1e-6) is smaller
    assert MixingMatrix(_bipartite_heavy(300)).spectral_gap == pytest.approx(2e-6, rel=1e-6)


@pytest.mark.parametrize("n", [300, 550])
def test_push_gap_is_the_second_eigenvalue(n: int) -> None:
    graph = nx.DiGraph((i, (i + 1) % n) for i in range(n))
    graph.add_edges_from((i, (i * i) % n) for i in range(n) if (i * i) % n != i)
    matrix = push(graph)
    np.testing.assert_allclose(matrix.weights.sum(axis=0), 1, atol=1e-12)
    values = np.sort(np.abs(np.linalg.eigvals(matrix.weights.toarray())))
    assert matrix.rho == pytest.approx(values[-2], rel=1e-8)
    assert not matrix.doubly_stochastic


def test_push_gap_of_a_large_slow_directed_ring() -> None:
    n = 1500
    matrix = push(nx.DiGraph((i, (i + 1) % n) for i in range(n)))
    assert matrix.spectral_gap == pytest.approx(1 - cos(pi / n), rel=1e-4)


@pytest.mark.parametrize("rule", ["metropolis", "max_degree", "lazy"])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_rules_match_their_definition(rule: str, n: int) -> None:
    graph = graphs.erdos_renyi(n, seed=5)
    degree = dict(graph.degree)
    expected = np.zeros((n, n))
    for i, j in graph.edges:
        share = {
            "metropolis": 1 / (1 + max(degree[i], degree[j])),
            "max_degree": 1 / (1 + max(degree.values())),
            "lazy": 0.5 / (1 + max(degree[i], degree[j])),
        }[rule]
        expected[i, j] = expected[j, i] = share
    expected += np.diag(1 - expected.sum(axis=1))
    matrix = RULES[rule](graph)
    np.testing.assert_allclose(matrix.weights.toarray(), expected, atol=1e-15)
    assert matrix.symmetric and matrix.doubly_stochastic and not matrix.directed


def test_rows_make_up_the_matrix() -> None:
    matrix = uniform(graphs.exponential(11))
    dense = matrix.weights.toarray()
    for agent in range(11):
        row = matrix.row(agent)
        assert row.own == dense[agent, agent]
        others = [j for j in range(11) if j != agent]
        assert row.sources == tuple(j for j in others if dense[agent, j])
        assert row.weights == tuple(dense[agent, j] for j in row.sources)
        assert row.targets == tuple(j for j in others if dense[j, agent])
    assert matrix.row(3) is matrix.row(3)
    assert matrix.directed and not matrix.symmetric


def test_digest_tells_weights_apart_but_not_objects() -> None:
    ring = graphs.ring(9)
    assert metropolis(ring).digest == metropolis(graphs.ring(9)).digest
    assert metropolis(ring).digest != lazy(ring).digest
    assert metropolis(ring).digest != metropolis(graphs.path(9)).digest


def test_faults_say_where() -> None:
    good = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])

    def refuse(words: str, **changes: float) -> None:
        w = good.copy()
        for place, value in changes.items():
            w[int(place[1]), int(place[2])] = value
        with pytest.raises(TopologyError, match=words):
            MixingMatrix(csr_array(w), name="w.npz")

    refuse("w.npz: row 1, column 2 is -0.25", e12=-0.25)
    refuse("w.npz: row 0, column 0 is nan.*own weight", e00=float("nan"))
    refuse("w.npz: column 2 sums to 1.05, not 1", e12=0.3)
    refuse("w.npz: row 1 sums to 1.1", e11=0.6, e12=0.25, e21=0.15)  # columns stay at 1
    with pytest.raises(TopologyError, match="2 components, of sizes 3 with agent 0, 2 with agent"):
        MixingMatrix(csr_array(np.kron(np.eye(5), 1.0) * 0 + _blocks(3, 2)))
    with pytest.raises(TopologyError, match="multiple of 2.*oscillate"):
        MixingMatrix(csr_array(np.array([[0.0, 1.0], [1.0, 0.0]])))
    with pytest.raises(TopologyError, match="multiple of 5"):
        MixingMatrix(_directed_ring(5, 0.0))
    # zero own weights alone are no fault: an odd cycle is aperiodic
    assert MixingMatrix(csr_array((np.ones((3, 3)) - np.eye(3)) / 2)).rho == pytest.approx(0.5)


def _blocks(*sizes: int) -> np.ndarray:
    w = np.zeros((sum(sizes), sum(sizes)))
    start = 0
    for size in sizes:
        w[start : start + size, start : start + size] = 1 / size
        start += size
    return w


def test_one_way_links_do_not_connect() -> None:
    graph = nx.DiGraph([(0, 1), (1, 0), (1, 2), (2, 3), (3, 2)])
    with pytest.raises(TopologyError, match="2 strongly connected components") as caught:
        push(graph)
    assert "one way" in caught.value.remedy


def test_rules_refuse_graphs_that_they_cannot_weigh() -> None:
    with pytest.raises(TopologyError, match="agent 0 has degree 1, agent 1 has 2"):
        uniform(graphs.path(4))
    with pytest.raises(TopologyError, match="agent 0 has in-degree 1, agent 2 has 2"):
        uniform(nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)]))
    for rule in (metropolis, max_degree, lazy):
        with pytest.raises(TopologyError, match="directed"):
            rule(graphs.exponential(8))


def test_given_weights_must_lie_on_the_graph() -> None:
    ring = metropolis(graphs.ring(6)).weights
    assert from_weights(ring, graphs.ring(6), "w").num_agents == 6
    with pytest.raises(TopologyError, match="row 0, column 5 is 0.333333, but.*does not receive"):
        from_weights(ring, graphs.path(6), "w")
    with pytest.raises(TopologyError, match=r"row 0, column 2 is 0, but.* from agent 2.*18 such"):
        from_weights(ring, graphs.complete(6), "w")
    with pytest.raises(TopologyError, match="6 agents, but the graph has 7"):
        from_weights(ring, graphs.ring(7), "w")


def test_symmetry_is_told_from_balanced_sums() -> None:
    w = metropolis(graphs.complete(4)).weights.toarray()
    for i, j in ((0, 1), (1, 2), (2, 0)):  # a circulation keeps all sums
        w[i, j] += 0.1
        w[j, i] -= 0.1
    assert not MixingMatrix(csr_array(w)).symmetric
    assert metropolis(graphs.ring(5)).symmetric
