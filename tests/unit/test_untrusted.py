"""Neighbours that send what they like: honest agents stay together where plain gossip is led away.

The attackers are seeded and sit in the exchange, so that they take part in a run like any agent.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from quadratics import LR, ROUNDS, N, P, Quadratics, agree, dense, make_run, zeros

from decdpo import build
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.robust.clipped_gossip import ClippedGossip
from decdpo.algorithms.robust.trimmed_mean import TrimmedMean
from decdpo.comm.late.staleness import Around
from decdpo.config import parse
from decdpo.errors import ConfigError, TopologyError
from decdpo.params.optim import SGD
from decdpo.topology.schedule import make_schedule
from decdpo.train import Ending, train

ATTACKERS = (2, 7)
AGENTS = 10


def noise(agent, round, like):
    rng = np.random.default_rng([5, agent, round])
    return torch.from_numpy(30 * rng.normal(size=len(like)))


ATTACKS = {
    "flipped": lambda agent, round, x: -4 * x,
    "scaled": lambda agent, round, x: 50 * x,
    "noise": noise,
    "not a number": lambda agent, round, x: torch.full_like(x, float("nan")),
    "infinite": lambda agent, round, x: torch.full_like(x, float("-inf")),
}


class Attacked(Around):
    """An exchange in which ``attackers`` send what ``lie`` makes of their messages."""

    def __init__(self, inner, attackers, lie):
        super().__init__(inner)
        self.attackers, self.lie, self.truth = attackers, lie, {}

    def start(self, agent, round, row, message):
        if agent in self.attackers:
            self.truth[agent] = message.clone()
            message = self.lie(agent, round, message)
        self._inner.start(agent, round, row, message)

    def inbox(self, agent, round):
        inbox = self._inner.inbox(agent, round)
        # An attacker's own model is of no interest, but it must stay finite for the loop.
        return replace(inbox, sent=self.truth[agent]) if agent in self.truth else inbox


def honest_path(algorithm, attack, graph="complete", rounds=150):
    """Return the path of the honest agents (rounds, n - f, P), and their own optimum (P,)."""
    problem = Quadratics(n=AGENTS, noise=0.05)
    # Alike up to a little: how unlike agents are bounds what any such rule can reach.
    problem.A, problem.c = problem.A[:1].repeat(AGENTS, 0), problem.c[:1] + 0.1 * problem.c
    run = make_run(algorithm, make_schedule(graph, "auto", AGENTS), problem, rounds=rounds)
    run.exchange = Attacked(run.exchange, ATTACKERS, ATTACKS[attack])
    honest = [i for i in range(AGENTS) if i not in ATTACKERS]
    assert train(run) is Ending.DONE
    return np.stack(run.monitor.path)[:, honest], problem.c[honest].mean(axis=0)


def far(path, optimum):
    """Return how far the honest agents are from their optimum at the end, at most."""
    return np.linalg.norm(path[-1] - optimum, axis=1).max()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", [ClippedGossip, TrimmedMean])
def test_honest_agents_stay_near_their_optimum_among_attackers(kind, attack):
    path, optimum = honest_path(kind(SGD(), P, 2), attack)
    assert far(path, optimum) < 0.25 < np.linalg.norm(optimum) / 4


@pytest.mark.parametrize("attack", ["flipped", "scaled", "noise"])
def test_plain_gossip_is_led_away_by_attackers(attack):
    path, optimum = honest_path(Dsgd(SGD(), P), attack)
    assert far(path, optimum) > 1.0


@pytest.mark.parametrize("graph", ["complete", "exponential"])
@pytest.mark.parametrize("dishonest", [1])
def test_clipped_gossip_is_its_recursion(graph, dishonest):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N)
    run = make_run(ClippedGossip(SGD(), P, dishonest), schedule, problem)
    train(run)
    X, W, theirs = zeros(), dense(schedule, 0), []
    for t in range(ROUNDS):
        Y = X - LR * problem.slopes(X, t)
        X = Y.copy()
        for i in range(N):
            others = [j for j in range(N) if j != i and W[i, j]]
            far_off = [np.linalg.norm(Y[j] - Y[i]) for j in others]
            tau = sorted(far_off)[len(others) - dishonest - 1]
            for j, length in zip(others, far_off):
                X[i] += W[i, j] * min(1, tau / length) * (Y[j] - Y[i])
        theirs.append(X)
    agree(np.stack(run.monitor.path), theirs)


@pytest.mark.parametrize("dishonest", [1, 2])
def test_trimmed_mean_is_its_recursion(dishonest):
    problem, schedule = Quadratics(), make_schedule("complete", "auto", N)
    run = make_run(TrimmedMean(SGD(), P, dishonest), schedule, problem)
    train(run)
    X, W, theirs = zeros(), dense(schedule, 0), []
    for t in range(ROUNDS):
        Y = X - LR * problem.slopes(X, t)
        X = Y.copy()
        for i in range(N):
            others = np.array([j for j in range(N) if j != i])
            for c in range(P):
                kept = others[np.argsort(Y[others, c])][dishonest : len(others) - dishonest]
                X[i, c] += sum(W[i, j] * (Y[j, c] - Y[i, c]) for j in kept)
        theirs.append(X)
    agree(np.stack(run.monitor.path), theirs)


@pytest.mark.parametrize("kind", ["clipped_gossip", "trimmed_mean"])
def test_more_neighbours_are_needed_than_twice_the_dishonest(kind):
    text = f'[algorithm]\nkind = "{kind}"\n[topology]\ngraph = "%s"'
    build.make_topology(parse(text % "complete"), [1] * 4)
    with pytest.raises(TopologyError, match="more than 2 neighbours.*agent 0 has 2"):
        build.make_topology(parse(text % "ring"), [1] * 4)
    with pytest.raises(TopologyError, match="agent 0 has 1"):
        build.make_topology(parse(text % "random_matching"), [1] * 4)
    with pytest.raises(ConfigError, match="survive"):
        parse(text % "complete" + '\n[faults]\non_loss = "survive"')
