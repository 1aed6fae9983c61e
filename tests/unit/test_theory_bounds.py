"""Bounds: monotony, truth on problems that can be solved, and the largest stable step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.comm.local import LocalWorld
from decdpo.errors import ConfigError
from decdpo.params.optim import SGD
from decdpo.studies.builtin.mixing import starting_point
from decdpo.theory.advisor import Budget, Cost, advise, per_round, suitable
from decdpo.theory.bounds import Problem, best_step, decentralized, federated, stale
from decdpo.theory.stability import largest_stable_step, smallest_eigenvalue
from decdpo.topology.schedule import make_schedule, round_weights

PROBLEM = Problem(
    smoothness=2.0,
    smoothness_max=3.0,
    gap=0.7,
    kappa_sq=0.5,
    zeta_sq=0.3,
    gradient_sq=1.0,
    num_agents=8,
)
BOUNDS = {
    "federated": lambda p, eta, **o: federated(p, eta, 50, participants=4, **o),
    "decentralized": lambda p, eta, **o: decentralized(p, eta, 50, rho=0.6, **o),
    "stale": lambda p, eta, **o: stale(p, eta, 50, rho=0.6, delay=3, own=0.4, **o),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_harder_problem_has_a_larger_bound(kind):
    bound = BOUNDS[kind]
    for eta in (1e-3, 0.1):
        for steps in (1, 4):
            here = bound(PROBLEM, eta, local_steps=steps).total
            for name in ("smoothness", "smoothness_max", "gap", "kappa_sq", "zeta_sq"):
                harder = replace(PROBLEM, **{name: 2 * getattr(PROBLEM, name)})
                assert bound(harder, eta, local_steps=steps).total > here, name


def test_bounds_move_as_they_must():
    totals = [federated(PROBLEM, 0.05, r, 2, 4).total for r in (1, 10, 100)]
    assert totals == sorted(totals, reverse=True)
    totals = [federated(PROBLEM, 0.05, 50, 2, s).total for s in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)
    totals = [decentralized(PROBLEM, 0.05, 50, 2, rho).total for rho in (0, 0.5, 0.9, 0.99)]
    assert totals == sorted(totals)
    totals = [stale(PROBLEM, 0.05, 50, 2, 0.5, delay=q).total for q in (0, 1, 2, 5)]
    assert totals == sorted(totals) and len(set(totals)) == 4
    assert stale(PROBLEM, 0.05, 50, 2, 0.5, delay=0).total == pytest.approx(
        decentralized(PROBLEM, 0.05, 50, 2, 0.5).total
    )
    assert decentralized(PROBLEM, 0.05, 50, rho=1.0).total == np.inf
    assert federated(PROBLEM, 0.05, 50, 1, 8).terms["participation"] == 0


@pytest.mark.parametrize("kind", BOUNDS)
def test_the_best_step_is_the_best(kind):
    for problem in (PROBLEM, replace(PROBLEM, zeta_sq=0.0), replace(PROBLEM, kappa_sq=0.0)):
        for steps in (1, 8):
            def at(eta):
                return BOUNDS[kind](problem, eta, local_steps=steps)

            best = best_step(at)
            assert 0 < best.step <= best.step_limit
            others = np.geomspace(1e-6, 1, 400) * best.step_limit
            assert all(at(eta).total >= best.total * (1 - 1e-9) for eta in others)
    nothing = replace(PROBLEM, gap=0.0, kappa_sq=0.0, zeta_sq=0.0, gradient_sq=0.0)
    assert best_step(lambda eta: BOUNDS[kind](nothing, eta)).total == 0


def test_the_decentralized_bound_holds_on_heterogeneous_quadratics():
    # f_i = a/2 ||x - b_i||^2: smoothness a, constant heterogeneity, noise added by hand.
    n, dim, a, sigma, rounds = 8, 3, 1.7, 0.4, 60
    rng = np.random.default_rng(1)
    schedule = make_schedule("ring", "auto", n)
    weights = schedule.matrix.weights.toarray()
    targets = rng.standard_normal((n, dim))
    kappa_sq = a**2 * np.square(targets - targets.mean(axis=0)).sum(axis=1).mean()
    first = np.full(dim, 4.0)
    gap = a / 2 * np.square(first - targets.mean(axis=0)).sum()
    problem = Problem(a, a, gap, kappa_sq, dim * sigma**2, 0.0, n)
    rho = per_round(schedule)
    for eta in (0.1, 0.5, 1.0) * np.array((1 - rho) / (2 * a)):
        seen = []
        for _ in range(20):
            x = np.tile(first, (n, 1))
            for _ in range(rounds):
                seen.append(a**2 * np.square(x.mean(axis=0) - targets.mean(axis=0)).sum())
                noise = sigma * rng.standard_normal((n, dim))
                x = weights @ x - eta * (a * (x - targets) + noise)
        bound = decentralized(problem, eta, rounds, 1, rho)
        assert eta <= bound.step_limit * (1 + 1e-12)
        assert np.mean(seen) <= bound.total <= 100 * np.mean(seen)


def gossip(schedule, gradient, x, eta, rounds):
    """Return all models (rounds + 1, n, d) of x <- W x - eta g(x)."""
    n, models = len(x), [x]
    for t in range(rounds):
        weights = round_weights(schedule.mixing(t), n)
        models.append(weights @ models[-1] - eta * gradient(models[-1]))
    return np.array(models)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_pairwise_rounds_do_not_have_the_bound_of_a_complete_graph(n):
    # Two camps, f_i = 1/2 (x - b_i)^2 with b_i = +1 or -1: some rounds average like with like.
    eta, rounds = 0.01, 2000
    schedule = make_schedule("one_peer_exponential", "auto", n)
    camp = starting_point("opposed", n, 0)
    models = gossip(schedule, lambda x: x - camp, np.zeros((n, 1)), eta, rounds)
    distances = np.square(models - models.mean(axis=1, keepdims=True)).mean(axis=(1, 2))
    problem = Problem(1.0, 1.0, 0.0, 1.0, 0.0, 0.0, n)
    bound = decentralized(problem, eta, rounds, 1, per_round(schedule))
    assert eta <= bound.step_limit
    # With L = 1 the drift is the bound on the distance itself.
    assert distances.max() <= bound.terms["drift"]
    # A graph that averages in every round would stay closer: its bound does not hold here.
    assert decentralized(problem, eta, rounds, 1, 0.0).terms["drift"] < distances.max()


def test_a_round_of_a_period_counts_its_share_of_the_periods_gap():
    for n in (8, 64):
        schedule = make_schedule("one_peer_exponential", "auto", n)
        assert 1 - per_round(schedule) == pytest.approx(1 / np.log2(n))
    ragged = make_schedule("one_peer_exponential", "auto", 12)
    assert 1 - per_round(ragged) == pytest.approx((1 - ragged.rho) / 4)
    ring = make_schedule("ring", "auto", 12)
    assert per_round(ring) == pytest.approx(ring.rho)


def own_coordinates(n):
    """Return the problem of f_i = 1/2 (x_i)^2, L = 1/n and L_i = 1, started at x = 1, (n,)."""
    gradients = np.eye(n)
    kappa_sq = np.square(gradients - gradients.mean(axis=0)).sum(axis=1).mean()
    return Problem(1 / n, 1.0, 0.5, kappa_sq, 0.0, 1.0, n)


def test_gossip_within_the_limit_does_not_diverge_where_each_agent_is_curved_elsewhere():
    n, rounds = 8, 40
    problem, complete = own_coordinates(n), make_schedule("complete", "auto", n)
    bound = decentralized(problem, 1.0, rounds)
    assert bound.step_limit == 0.5

    def run(eta):
        own = np.eye(n)
        return gossip(complete, lambda x: own * x, np.ones((n, n)), eta, rounds)

    # 3.96 lies below 1 / (2 L) = 4.
    assert np.abs(run(3.96)[-1]).max() > 1e20
    for share in (0.1, 0.5, 1.0):
        eta = share * bound.step_limit
        squares = np.square(run(eta)[:-1].mean(axis=1) / n).sum(axis=1)
        assert squares.mean() <= decentralized(problem, eta, rounds).total


def test_local_steps_within_the_limit_do_not_diverge_where_each_agent_is_curved_elsewhere():
    n, steps, rounds = 16, 4, 20
    problem = own_coordinates(n)
    limit = federated(problem, 1.0, rounds, steps).step_limit
    assert limit == 1 / steps

    def run(eta):
        # Agent i contracts its own coordinate by (1 - eta)^E, the server averages.
        factor = 1 + ((1 - eta) ** steps - 1) / n
        return factor ** np.arange(rounds + 1)[:, None] * np.ones(n)

    # 3.96 lies below 1 / (L E) = 4.
    assert run(3.96)[-1].max() > 1e10
    assert run(largest_stable_step(problem.smoothness_max, steps) * 0.999).max() <= 1
    for share in (0.1, 0.5, 1.0):
        squares = np.square(run(share * limit)[:-1] / n).sum(axis=1)
        assert squares.mean() <= federated(problem, share * limit, rounds, steps).total


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_stable_step_of_the_least_smooth_agent_is_stable_for_unlike_agents(steps, overlap):
    n = 6
    schedule = make_schedule("ring", "lazy", n)
    weights = schedule.matrix.weights.toarray()
    curvature = np.linspace(0.2, 2.0, n)[:, None]
    lowest = smallest_eigenvalue(schedule, n) if overlap else None
    eta = 0.999 * largest_stable_step(2.0, steps, lowest)
    x = np.random.default_rng(0).standard_normal((n, 3))
    size = np.abs(x).max()
    for _ in range(3000):
        local = (1 - eta * curvature) ** steps * x
        x = weights @ x + local - x if overlap else weights @ local
    assert np.abs(x).max() < size


def test_what_is_not_known_is_said():
    known = {
        "smoothness": 1.0, "smoothness_max": 2.0, "gap": 0.5, "kappa_sq": 0.25, "zeta_sq": 0.5,
        "gradient_sq": 1.0, "num_agents": 4, "optimum_is": "unknown: rDPO",
    }  # fmt: skip
    assert Problem.of(known) == Problem(1.0, 2.0, 0.5, 0.25, 0.5, 1.75, 4)
    for name, word in (("gap", "unknown: rDPO"), ("smoothness_max", "earlier version")):
        with pytest.raises(ConfigError, match=word):
            Problem.of({**known, name: None})


def test_stale_gossip_divides_the_step():
    # Every message is q rounds late on the complete graph; the average slows down.
    n, q, eta = 5, 4, 1e-3
    schedule = make_schedule("complete", "auto", n)
    weights = schedule.matrix.weights.toarray()
    own = weights[0, 0]
    past = [np.zeros(n)] * (q + 1)
    for _ in range(400):
        x = own * past[-1] + (weights - own * np.eye(n)) @ past[-1 - q] - eta
        past = [*past[1:], x]
    pace = (past[-2] - past[-1]).mean()
    assert pace == pytest.approx(eta / (1 + q * (1 - own)), rel=1e-4)


def run_quadratic(schedule, n, eta, steps, overlap, rounds=3000):
    """Train f = L/2 x^2 (L = 2) on every agent from random points; return the last |x|."""
    world = LocalWorld(n)
    algorithm = Dsgd(SGD(), 1)
    start = np.random.default_rng(0).standard_normal(n)
    states = [algorithm.init(torch.tensor([v], dtype=torch.float64)) for v in start]
    exchange = world.exchange(1, torch.float64)

    def send(t):
        for i, state in enumerate(states):
            exchange.start(i, t, schedule.mixing(t).row(i), algorithm.message(state))

    for t in range(rounds):
        if overlap:
            send(t)
        for state in states:
            for _ in range(steps):
                algorithm.local_step(state, 2.0 * state.x, eta)
        if not overlap:
            send(t)
        exchange.collect(t)
        for i, state in enumerate(states):
            algorithm.mix(state, exchange.inbox(i, t))
        size = max(abs(float(state.x)) for state in states)
        if size > 1e6:
            break
    return size


@pytest.mark.parametrize(
    "graph, weights, n, steps, overlap",
    [
        ("ring", "auto", 4, 1, True),
        ("ring", "auto", 4, 2, True),
        ("ring", "auto", 4, 3, True),
        ("ring", "lazy", 4, 2, True),
        ("ring", "lazy", 4, 3, True),
        ("ring", "auto", 4, 1, False),
        ("ring", "auto", 4, 3, False),
        ("complete", "auto", 3, 1, True),
    ],
)
def test_training_is_stable_just_below_the_limit_and_not_above(graph, weights, n, steps, overlap):
    schedule = make_schedule(graph, weights, n)
    lowest = smallest_eigenvalue(schedule, n)
    limit = largest_stable_step(2.0, steps, lowest if overlap else None)
    # Curvatures below L = 2 occur, too: scan what (0, L] would see with smaller steps.
    for share in (0.3, 0.6, 0.9, 0.98):
        assert run_quadratic(schedule, n, share * limit, steps, overlap, 400) < 1, share
    above = [run_quadratic(schedule, n, limit * f, steps, overlap, 1500) for f in (1.02, 1.05)]
    assert max(above) > 1e3


def test_smallest_eigenvalues():
    assert smallest_eigenvalue(make_schedule("ring", "auto", 4), 4) == pytest.approx(-1 / 3)
    assert smallest_eigenvalue(make_schedule("complete", "auto", 6), 6) == pytest.approx(0)
    ring = make_schedule("ring", "auto", 600)
    assert smallest_eigenvalue(ring, 600) == pytest.approx(-1 / 3, abs=1e-6)
    directed = make_schedule("exponential", "auto", 8)
    values = np.linalg.eigvals(directed.matrix.weights.toarray())
    assert smallest_eigenvalue(directed, 8) <= values.real.min() + 1e-12
    assert largest_stable_step(0.0) == np.inf


def graphs(n, *names):
    return [(name, make_schedule(name, "auto", n)) for name in names]


def test_advice_follows_the_budget():
    topologies = graphs(8, "ring", "complete")
    rounds = advise(PROBLEM, Budget(rounds=100), topologies, message_bytes=64)
    assert [c.bound.total for c in rounds] == sorted(c.bound.total for c in rounds)
    by = {(c.graph, c.local_steps): c for c in rounds if c.method == "dsgd"}
    # Equal rounds: the better connected graph cannot be worse. Equal bytes: it pays for its links.
    for steps in (1, 2, 4, 8, 16):
        assert by["complete", steps].bound.total <= by["ring", steps].bound.total
    bytes_ = advise(PROBLEM, Budget(bytes=64 * 16 * 100), topologies, message_bytes=64)
    ring, complete = (
        next(c for c in bytes_ if c.graph == g and c.local_steps == 1) for g in ("ring", "complete")
    )
    assert (ring.rounds, complete.rounds) == (100, 100 * 16 // 56)
    seconds = Budget(seconds=10.0, seconds_per_byte=1e-3, seconds_per_gradient=0.01)
    timed = advise(PROBLEM, seconds, topologies, message_bytes=64)
    assert all(c.seconds <= 10.0 + 1e-9 for c in timed)
    (two,) = [c for c in timed if c.graph == "ring" and c.local_steps == 2]
    assert two.rounds == int(10 / (2 * 64e-3 + 0.02))


def test_unlike_users_want_fewer_local_steps():
    def chosen_steps(kappa_sq):
        problem = replace(PROBLEM, kappa_sq=kappa_sq, zeta_sq=0.01)
        ranked = advise(problem, Budget(rounds=50), graphs(8, "ring"), message_bytes=8)
        return next(c.local_steps for c in ranked if c.method == "dsgd")

    assert chosen_steps(100.0) <= chosen_steps(1e-6)


def test_a_budget_too_small_for_a_round_offers_nothing():
    assert advise(PROBLEM, Budget(bytes=10), graphs(8, "ring"), message_bytes=64) == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rounds": 0},
        {"rounds": 5, "bytes": 5.0},
        {"seconds": 5.0},
        {"bytes": float("inf")},
        {"rounds": 5, "seconds_per_byte": -1.0},
    ],
)
def test_budgets_that_say_nothing_are_refused(fields):
    with pytest.raises(ConfigError):
        Budget(**fields)


def test_a_round_costs_its_messages_and_its_gradients():
    ((_, ring), (_, one_peer)) = suitable(("ring", "one_peer_exponential"), 8)
    assert Cost.of_gossip(ring, 10, 3) == Cost(bytes=160, busiest=20, gradients=3)
    assert Cost.of_gossip(one_peer, 10) == Cost(bytes=80, busiest=10, gradients=1)
    assert Cost.of_server(8, 2, 10, 4) == Cost(bytes=100, busiest=100, gradients=4)


def test_graphs_that_there_are_not_for_so_many_agents_are_left_out():
    assert [name for name, _ in suitable(("hypercube", "ring"), 6)] == ["ring"]
    assert [name for name, _ in suitable(("hypercube", "ring"), 8)] == ["hypercube", "ring"]
