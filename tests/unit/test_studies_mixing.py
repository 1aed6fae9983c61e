"""Rounds to consensus in pure mixing."""

import numpy as np
import pytest

from decdpo.studies.builtin import mixing
from decdpo.studies.builtin.mixing import Consensus, rounds_to_consensus, starting_point
from decdpo.topology.schedule import make_schedule, round_weights


def brute_force(graph, n, x, target):
    """Multiply dense matrices, round by round."""
    schedule = make_schedule(graph, "auto", n)
    x = x - x.mean(axis=0)
    goal, t = target * (x**2).sum(), 0
    while (x**2).sum() > goal:
        x = round_weights(schedule.mixing(t), n).toarray() @ x
        t += 1
    return t


@pytest.mark.parametrize("graph", ["ring", "torus", "star", "exponential", "random_matching"])
@pytest.mark.parametrize("start", mixing.STARTS)
def test_rounds_are_those_of_dense_matrices(graph, start):
    x = starting_point(start, 16, 3)
    schedule = make_schedule(graph, "auto", 16)
    assert rounds_to_consensus(schedule, x, 1e-6) == brute_force(graph, 16, x, 1e-6)


@pytest.mark.parametrize("graph", ["ring", "path", "two_clusters"])
def test_the_slowest_modes_go_on_exactly_where_stepping_stops(graph, monkeypatch):
    x = starting_point("random", 200, 0)
    schedule = make_schedule(graph, "auto", 200)
    monkeypatch.setattr(mixing, "MOST_ROUNDS", (10**6,))
    stepped = rounds_to_consensus(schedule, x, 1e-6)
    monkeypatch.setattr(mixing, "MOST_ROUNDS", (2000,))
    assert stepped > 2000
    assert abs(rounds_to_consensus(schedule, x, 1e-6) - stepped) <= 1


def test_an_unfinished_mixing_says_none_rather_than_a_guess(monkeypatch):
    monkeypatch.setattr(mixing, "MOST_ROUNDS", (1,))
    monkeypatch.setattr(mixing, "MODES", 2)
    x = starting_point("random", 64, 0)
    assert rounds_to_consensus(make_schedule("ring", "auto", 64), x, 1e-6) is None


def test_one_peer_exponential_ends_exactly_after_log2_n_rounds():
    for n, rounds in ((8, 3), (64, 6)):
        record = Consensus("one_peer_exponential", n, 0, "random", 1e-6).measure()[0]
        # 1 / (1 - rho) counts rounds, not periods: a round alone does not average anything.
        assert record["rounds"] == rounds and record["inverse_gap"] == pytest.approx(rounds)


def test_opposed_camps_start_mean_free_and_last_longest_on_a_ring():
    x = starting_point("opposed", 64, 0)
    assert x.sum() == 0 and set(np.unique(x)) == {-1.0, 1.0}
    ring = {s: Consensus("ring", 64, 0, s, 1e-6).measure()[0] for s in mixing.STARTS}
    assert ring["opposed"]["rounds"] > ring["random"]["rounds"]
    # the slowest mode alone would take ln(1/target) / (2 ln(1/rho))
    slowest = np.log(1e6) / (-2 * np.log(ring["opposed"]["rho"]))
    assert 0.95 * slowest < ring["opposed"]["rounds"] <= slowest + 1
