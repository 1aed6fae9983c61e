"""Schedules: exact averages, matchings, and combinations that are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from decdpo.errors import TopologyError
from decdpo.topology import graphs
from decdpo.topology.names import GRAPHS, TIME_VARYING, WEIGHTS, weights_allowed
from decdpo.topology.schedule import (
    Averaging,
    Isolated,
    OnePeerExponential,
    RandomMatching,
    Static,
    chosen_rule,
    make_schedule,
    require_connected_union,
    round_weights,
)
from decdpo.topology.weights import metropolis


def products(schedule, n: int, rounds: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    total = np.eye(n)
    for t in range(rounds):
        total = round_weights(schedule.mixing(t), n).toarray() @ total
    return total


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 256])
def test_one_peer_exponential_averages_exactly_after_log2_n_rounds(n: int) -> None:
    schedule = OnePeerExponential(n)
    rounds = max(1, n.bit_length() - 1)
    assert schedule.period == rounds
    np.testing.assert_array_equal(products(schedule, n, rounds), np.full((n, n), 1 / n))
    if n > 1:
        assert not np.allclose(products(schedule, n, rounds - 1), 1 / n)
    assert schedule.rho == 0
    assert schedule.spectral_gap == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 12, 16, 100])
def test_one_peer_exponential_contracts_as_its_product_does(n: int) -> None:
    schedule = OnePeerExponential(n)
    norms = [
        np.linalg.norm(products(schedule, n, t) - 1 / n, 2) for t in range(schedule.period + 1)
    ]
    assert schedule.rho == pytest.approx(norms[-1], abs=1e-13)
    halved = next(t for t, norm in enumerate(norms) if norm <= 0.5 + 1e-12)
    assert schedule.rounds_to_halve == halved
    later = OnePeerExponential(n).mixing(7 * schedule.period + 1).row(0)
    assert later == schedule.mixing(1).row(0)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 31])
def test_random_matching_pairs_everybody_but_an_odd_one(n: int) -> None:
    schedule = RandomMatching(n, seed=4)
    alone = set()
    for t in range(40):
        mixing = schedule.mixing(t)
        rows = [mixing.row(i) for i in range(n)]
        single = [i for i, row in enumerate(rows) if not row.sources]
        alone.update(single)
        assert len(single) == n % 2
        for i, row in enumerate(rows):
            assert row.sources == row.targets
            assert row.own + sum(row.weights) == 1
            for j in row.sources:
                assert j != i and rows[j].sources == (i,)
    if n % 2:
        assert len(alone) > n // 2  # not always the same one


def test_random_matching_depends_on_seed_and_round_alone() -> None:
    forward = RandomMatching(20, seed=1)
    partners = [forward.mixing(t).partner for t in range(10)]
    backward = RandomMatching(20, seed=1)
    assert [backward.mixing(t).partner for t in reversed(range(10))] == partners[::-1]
    assert forward.mixing(0).partner == partners[0]
    assert RandomMatching(20, seed=2).mixing(0).partner != partners[0]
    assert len({tuple(p) for p in partners}) == 10
    assert forward.digest == backward.digest != RandomMatching(20, seed=2).digest


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_random_matching_rho_is_the_mean_contraction(n: int) -> None:
    # the mean of W_t over many rounds has rho^2 as its second eigenvalue
    schedule = RandomMatching(n, seed=0)
    rounds = 3000
    mean = sum(round_weights(schedule.mixing(t), n).toarray() for t in range(rounds)) / rounds
    second = np.linalg.eigvalsh(mean - 1 / n).max()
    assert schedule.rho**2 == pytest.approx(second, abs=0.05)


def test_union_of_rounds_must_connect() -> None:
    schedule = RandomMatching(16, seed=0)
    with pytest.raises(TopologyError, match=r"union of rounds 5 ... 5 falls into 8 components"):
        require_connected_union(schedule, 16, rounds=1, first=5)
    require_connected_union(schedule, 16, rounds=12)
    require_connected_union(OnePeerExponential(16), 16, rounds=4)
    with pytest.raises(TopologyError, match="4 components, of sizes 1 with agent 0"):
        require_connected_union(Isolated(), 4, rounds=3)


def test_averaging_gives_everybody_the_same_row() -> None:
    mean = Averaging([1, 4, 5], [0.5, 0.25, 0.25])
    row = mean.mixing(9).row(1)
    assert row is mean.row(4) and row.active
    assert mean.row(0) == replace(row, active=False) == mean.row(7)
    assert (row.own, row.sources, row.weights, row.targets) == (0, (1, 4, 5), (0.5, 0.25, 0.25), ())
    assert Averaging(range(4)).row(2).weights == (0.25,) * 4
    assert Averaging(range(4)).digest != Averaging(range(5)).digest
    for ids, weights in (([], None), ([1, 1], None), ([2, 1], None), ([-1], None),
                         ([0, 1], [0.5]), ([0, 1], [0.6, 0.6]), ([0, 1], [-1.0, 2.0])):  # fmt: skip
        with pytest.raises(TopologyError):
            Averaging(ids, weights)


def test_isolated_agents_hear_nobody() -> None:
    assert Isolated().mixing(3).row(2) == Isolated().row(0)
    assert Isolated().row(0).own == 1.0 and Isolated().row(0).targets == ()


def test_rounds_to_halve_is_the_smallest() -> None:
    for n in (3, 8, 30, 1000):
        schedule = Static(metropolis(graphs.ring(n)))
        rounds = schedule.rounds_to_halve
        assert rounds is not None
        assert schedule.rho**rounds <= 0.5 + 1e-12
        assert rounds == 1 or schedule.rho ** (rounds - 1) > 0.5


@pytest.mark.parametrize("graph", [g for g in GRAPHS if g != "file"])
@pytest.mark.parametrize("weights", [w for w in WEIGHTS if w != "file"])
@pytest.mark.parametrize("n", [1, 2, 16])
def test_every_combination_mixes_or_is_refused(graph: str, weights: str, n: int) -> None:
    irregular = ("path", "star", "two_clusters", "erdos_renyi", "small_world")
    if (graph == "torus" and n == 2) or weights not in weights_allowed(graph):
        with pytest.raises(TopologyError):
            make_schedule(graph, weights, n, push_sum=True)
        return
    if weights == "uniform" and graph in irregular and n == 16:
        with pytest.raises(TopologyError, match="regular"):
            make_schedule(graph, weights, n)
        return
    schedule = make_schedule(graph, weights, n, push_sum=weights == "push", pairs=[3] * n)
    dense = round_weights(schedule.mixing(0), n).toarray()
    np.testing.assert_allclose(dense.sum(axis=0), 1, atol=1e-12)
    assert schedule.doubly_stochastic == (weights != "push" or graph == "complete")
    if schedule.doubly_stochastic:
        np.testing.assert_allclose(dense.sum(axis=1), 1, atol=1e-12)
    assert schedule.num_agents == n
    off = dense - np.diag(np.diag(dense))
    assert schedule.num_sources.tolist() == (off > 0).sum(axis=1).tolist()
    assert schedule.directed == bool(((off > 0) != (off > 0).T).any())
    assert schedule.symmetric == bool(np.allclose(dense, dense.T, atol=1e-13))
    assert 0 <= schedule.rho < 1
    assert chosen_rule(graph, "auto") in weights_allowed(graph)
    assert chosen_rule(graph, "auto", push_sum=True) in weights_allowed(graph)
    assert (chosen_rule(graph, "auto", push_sum=True) == "push") == (graph not in TIME_VARYING)


def test_unsound_requests_are_refused_with_the_reason(tmp_path: Path) -> None:
    def refuse(words: str, *names: object, **options: object) -> str:
        with pytest.raises(TopologyError, match=words) as caught:
            make_schedule(*names, **options)  # type: ignore[arg-type]
        return caught.value.remedy

    assert "'ring'" in refuse("'rign' is unknown", "rign", "auto", 4)
    assert "'metropolis'" in refuse("unknown", "ring", "metropolos", 4)
    assert "uniform" in refuse("is directed", "exponential", "metropolis", 4)
    refuse("brings its own", "random_matching", "lazy", 4)
    refuse("drift from the average", "exponential", "push", 4)
    refuse("degree = 3 would be ignored", "ring", "auto", 4, degree=3)
    refuse("probability = 0.5 would be ignored", "random_regular", "auto", 8, probability=0.5)
    refuse("file = g.txt would be ignored", "ring", "auto", 4, file="g.txt")
    refuse("graph = 'file', but no file", "file", "auto", 4)
    refuse("weights = 'file', but no file", "ring", "file", 4)
    refuse("0 agents", "ring", "auto", 0)


def test_files_give_graphs_and_weights(tmp_path: Path) -> None:
    plain = tmp_path / "g.txt"
    plain.write_text("0 1\n1 2\n2 3\n3 0\n")
    ring = make_schedule("ring", "metropolis", 4)
    assert make_schedule("file", "auto", 4, file=plain).digest == ring.digest
    weighted = tmp_path / "w.txt"
    weighted.write_text("0 1 0.2\n1 2 .2\n2 3 .2\n3 0 .2\n")
    assert chosen_rule("file", "auto", weighted) == "file"
    matrix = make_schedule("file", "auto", 4, file=weighted).mixing(0)
    assert matrix.row(0).own == pytest.approx(0.6)
    assert make_schedule("file", "metropolis", 4, file=weighted).digest == ring.digest
    assert make_schedule("ring", "file", 4, file=weighted).digest == matrix.digest  # type: ignore
    with pytest.raises(TopologyError, match="w.txt: row 0, column 3"):
        make_schedule("path", "file", 4, file=weighted)
    with pytest.raises(TopologyError, match="g.txt: weights = 'file', but the edges have no"):
        make_schedule("ring", "file", 4, file=plain)
    weighted.write_text("0 1 0.7\n1 2 .7\n")
    with pytest.raises(TopologyError, match=r"w.txt: row 1, column 1 is -0.4.*neighbours leave"):
        make_schedule("file", "auto", 3, file=weighted)
    plain.write_text("0 1\n2 3\n")
    with pytest.raises(TopologyError, match="2 components, of sizes 2 with agent 0, 2 with agent"):
        make_schedule("file", "auto", 4, file=plain)


def test_a_thousand_rows_a_round_are_cheap() -> None:
    for name in TIME_VARYING:
        schedule = make_schedule(name, "auto", 1000)
        rows = [schedule.mixing(t).row(i) for t in range(20) for i in range(1000)]
        assert len(rows) == 20_000
    static = make_schedule("torus", "auto", 1000)
    assert static.mixing(0).row(5) is static.mixing(1).row(5)
    assert isinstance(round_weights(static.mixing(0), 1000), csr_array)


def test_a_mistyped_number_of_agents_is_no_huge_graph() -> None:
    with pytest.raises(TopologyError, match="100000000000000000000 agents are too many"):
        make_schedule("ring", "auto", 10**20)


def test_push_sum_alone_takes_a_column_stochastic_matrix_from_a_file(tmp_path: Path) -> None:
    shares = np.array([[0.5, 0.0, 0.25], [0.5, 0.5, 0.25], [0.0, 0.5, 0.5]])
    file = tmp_path / "push.csv"
    np.savetxt(file, shares, delimiter=",")
    schedule = make_schedule("file", "auto", 3, file=file, push_sum=True)
    assert not schedule.doubly_stochastic
    np.testing.assert_allclose(round_weights(schedule.mixing(0), 3).toarray(), shares)
    with pytest.raises(TopologyError, match="row 0 sums to 0.75"):
        make_schedule("file", "auto", 3, file=file)
    np.savetxt(file, shares.T, delimiter=",")
    with pytest.raises(TopologyError, match="column 0 sums to 0.75"):
        make_schedule("file", "auto", 3, file=file, push_sum=True)
