"""What a round costs on a network: the formulas, their fit, and the rounds that averaging takes."""

import math

import numpy as np
import pytest

from decdpo.errors import ConfigError
from decdpo.theory.cost import Link, fit, rounds_to
from decdpo.topology.schedule import make_schedule

LINK = Link(latency=2e-4, overhead=3e-5, per_byte=8e-8)


def test_one_neighbour_costs_what_an_all_reduce_of_two_costs() -> None:
    assert LINK.gossip(1, 1e6) == pytest.approx(2e-4 + 3e-5 + 0.08)
    assert LINK.recursive_doubling(2, 1e6) == pytest.approx(LINK.gossip(1, 1e6))
    assert LINK.gossip(0, 1e6) == LINK.all_reduce(1, 1e6) == 0


@pytest.mark.parametrize("count", [2, 3, 8, 100])
def test_long_messages_are_sent_twice_but_for_a_piece(count: int) -> None:
    per_byte, latency = Link(0.0, 0.0, 1.0), Link(1.0, 0.0, 0.0)
    sent = 2 * 600 * (count - 1) / count
    assert per_byte.halving_and_doubling(count, 600) == pytest.approx(sent)
    steps = math.ceil(math.log2(count))
    assert latency.halving_and_doubling(count, 600) == 2 * steps
    assert latency.recursive_doubling(count, 600) == steps


def test_the_faster_way_to_all_is_taken() -> None:
    assert LINK.all_reduce(64, 8) == LINK.recursive_doubling(64, 8)
    assert LINK.all_reduce(64, 1e9) == LINK.halving_and_doubling(64, 1e9)
    assert LINK.recursive_doubling(64, 1e9) > 2 * LINK.halving_and_doubling(64, 1e9)


def test_gossip_does_not_know_how_many_agents_there_are_and_an_all_reduce_does() -> None:
    few, many = (LINK.all_reduce(n, 1e3) / LINK.gossip(2, 1e3) for n in (8, 10_000))
    assert few < 3 < 5 < many


def rounds_of(link: Link, wrong: float = 0.0) -> list[tuple[int, float, float]]:
    rng = np.random.default_rng(0)
    cases = [(degree, size) for degree in (1, 2, 7) for size in (4.0, 1e5, 1e7)]
    return [(d, m, link.gossip(d, m) * (1 + wrong * rng.standard_normal())) for d, m in cases]


def test_a_fit_finds_the_constants() -> None:
    found = fit(rounds_of(LINK))
    assert found.latency == pytest.approx(LINK.latency, rel=1e-9)
    assert found.overhead == pytest.approx(LINK.overhead, rel=1e-9)
    assert found.per_byte == pytest.approx(LINK.per_byte, rel=1e-9)
    rough = fit(rounds_of(LINK, wrong=0.1))
    assert rough.per_byte == pytest.approx(LINK.per_byte, rel=0.2)


def test_no_constant_is_below_nothing() -> None:
    # Each message takes the longer the more there are: latency alone would have to be negative.
    found = fit([(d, m, 1e-3 * d * d + 1e-8 * m * d) for d in (1, 2, 7) for m in (4.0, 1e5)])
    assert found.latency == 0 and found.overhead > 0 and found.per_byte > 0


@pytest.mark.parametrize("rounds", [[], [(2, 4.0, 1e-4)] * 5, [(2, m, m) for m in (1.0, 2.0, 3.0)]])
def test_rounds_that_tell_too_little_are_refused(rounds: list[tuple[int, float, float]]) -> None:
    with pytest.raises(ConfigError, match="tell latency, overhead and bandwidth apart") as fault:
        fit(rounds)
    assert "two degrees and two sizes" in str(fault.value.remedy)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_network_has_finite_costs(bad: float) -> None:
    with pytest.raises(ConfigError, match="a network with a latency"):
        Link(bad, 0.0, 0.0)


@pytest.mark.parametrize("graph", ["ring", "torus", "exponential"])
def test_agents_are_averaged_after_so_many_rounds(graph: str) -> None:
    schedule = make_schedule(graph, "auto", 16, push_sum=True)
    rounds = math.ceil(rounds_to(1e-3, schedule.rho))
    w = np.zeros((16, 16))
    for i in range(16):
        row = schedule.mixing(0).row(i)
        w[i, i], w[i, list(row.sources)] = row.own, row.weights
    # The slowest of all starts is the one that rho counts.
    apart = np.linalg.norm(np.linalg.matrix_power(w, rounds) - 1 / 16, 2)
    assert apart <= 1e-3
    if schedule.symmetric:
        assert np.linalg.norm(np.linalg.matrix_power(w, rounds - 1) - 1 / 16, 2) > 1e-3


def test_a_schedule_that_averages_in_a_period_takes_one() -> None:
    schedule = make_schedule("one_peer_exponential", "auto", 64, push_sum=True)
    assert schedule.rho < 1e-12
    assert rounds_to(1e-3, schedule.rho, schedule.period) == schedule.period == 6
    assert rounds_to(1e-3, 0.1, 6) == pytest.approx(18)


def test_complete_graphs_average_at_once_and_parted_ones_never() -> None:
    assert rounds_to(1e-3, 0.0) == 1
    assert rounds_to(1e-3, 1.0) == math.inf
