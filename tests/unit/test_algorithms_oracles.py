"""Every further algorithm against its paper's recursion: all agents at once, in matrix form.

The agents hold heterogeneous quadratics f_i(x) = 1/2 (x - c_i)^T A_i (x - c_i), with a seeded noise
on each gradient, and are trained by the very loop of ``decdpo.train`` in float64.
"""

from functools import cache

import numpy as np
import pytest
import torch
from quadratics import (
    LR,
    ROUNDS,
    N,
    P,
    Quadratics,
    agree,
    dense,
    goes_on_to_the_bit,
    make_run,
    trained,
    zeros,
)

from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.exact_diffusion import ExactDiffusion
from decdpo.algorithms.gossip.gossip_outer_momentum import GossipOuterMomentum
from decdpo.algorithms.gossip.gradient_tracking import GradientTracking
from decdpo.algorithms.gossip.push_sum import PushSum
from decdpo.algorithms.gossip.quasi_global_momentum import QuasiGlobalMomentum
from decdpo.algorithms.server.centralized import Centralized
from decdpo.algorithms.server.fedavg import FedAvg
from decdpo.algorithms.server.outer_momentum import OuterMomentum
from decdpo.comm.local import LocalWorld
from decdpo.params.optim import SGD, AdamW
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import Averaging, make_schedule
from decdpo.train import train

GRAPHS = ["ring", "star", "exponential", "one_peer_exponential", "random_matching"]
SYMMETRIC = ["ring", "star", "complete", "random_matching"]


# --- FedDPO -------------------------------------------------------------------------------------


def local_path(problem, x, i, steps, lr=LR, momentum=0.0, v=None):
    """E steps of agent i alone from x; its velocity v changes in place."""
    v = np.zeros(P) if v is None else v
    for step in steps:
        gradient = problem.A[i] @ (x - problem.c[i]) + problem.noise[step % 200, i]
        v[:] = momentum * v + gradient
        x = x - lr * v
    return x


@pytest.mark.parametrize("local_steps, momentum", [(1, 0.0), (3, 0.0), (3, 0.9)])
@pytest.mark.parametrize("participants, sizes", [(6, None), (3, None), (1, None), (3, range(1, 7))])
def test_fedavg_averages_its_participants(local_steps, momentum, participants, sizes):
    problem = Quadratics()
    schedule = Participation(N, participants, seed=2, weights=sizes)
    ours = trained(FedAvg(SGD(momentum=momentum), P), schedule, problem, server=True,
                   local_steps=local_steps)  # fmt: skip
    x, V, theirs, taken = np.zeros(P), zeros(), [zeros()], []
    for t in range(ROUNDS):
        chosen = schedule.mixing(t).row(0).sources
        weights = np.array([1.0 if sizes is None else sizes[i] for i in chosen])
        steps = range(t * local_steps, (t + 1) * local_steps)
        ends = [local_path(problem, x, i, steps, momentum=momentum, v=V[i]) for i in chosen]
        x = weights @ np.stack(ends) / weights.sum()
        theirs.append(np.tile(x, (N, 1)))
        taken += [(i, step) for step in steps for i in chosen]
    agree(ours, theirs)
    assert (ours == ours[:, :1]).all()
    assert problem.taken == taken


def test_a_bystander_takes_no_step_and_sends_nothing():
    problem, schedule = Quadratics(), Participation(N, 2, seed=2)
    run = make_run(FedAvg(SGD(), P), schedule, problem, server=True, rounds=1)
    sent, post = [], run.exchange._inner.start
    run.exchange._inner.start = lambda agent, t, row, message: (
        sent.append((agent, row.targets, message is not None)),
        post(agent, t, row, message),
    )
    train(run)
    chosen = schedule.mixing(0).row(0).sources
    assert [agent for agent, targets, said in sent if said] == list(chosen)
    assert [agent for agent, targets, said in sent if targets] == [i for i in chosen if i != 0]
    assert {agent for agent, step in problem.taken} == set(chosen)
    assert all(agent.stats.count == 0 for agent in run.agents)


def outer_oracle(problem, schedule, local_steps, momentum, outer_lr, outer_momentum, nesterov):
    x, v, V, theirs = np.zeros(P), np.zeros(P), zeros(), [zeros()]
    for t in range(ROUNDS):
        row = schedule.mixing(t).row(0)
        steps = range(t * local_steps, (t + 1) * local_steps)
        ends = [local_path(problem, x, i, steps, momentum=momentum, v=V[i]) for i in row.sources]
        delta = x - np.array(row.weights) @ np.stack(ends)
        v = outer_momentum * v + delta
        x = x - outer_lr * (delta + outer_momentum * v if nesterov else v)
        theirs.append(np.tile(x, (N, 1)))
    return theirs


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("schedule", [Averaging(range(N)), Participation(N, 2, seed=1)])
def test_outer_momentum_steps_along_the_average_change(nesterov, momentum, schedule):
    problem = Quadratics()
    outer = SGD(momentum=0.8, nesterov=nesterov)
    algorithm = OuterMomentum(SGD(momentum=momentum), P, outer, 0.7)
    ours = trained(algorithm, schedule, problem, server=True, local_steps=4)
    agree(ours, outer_oracle(problem, schedule, 4, momentum, 0.7, 0.8, nesterov))
    assert (ours == ours[:, :1]).all()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_gossip_outer_momentum_is_its_recursion(graph, nesterov, momentum):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)
    outer = SGD(momentum=0.8, nesterov=nesterov)
    algorithm = GossipOuterMomentum(SGD(momentum=momentum), P, outer, 0.7)
    ours = trained(algorithm, schedule, problem, local_steps=4)
    X, inner, v, theirs = zeros(), zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        Y = X
        for step in range(4 * t, 4 * t + 4):
            inner = momentum * inner + problem.slopes(Y, step)
            Y = Y - LR * inner
        delta = X - dense(schedule, t) @ Y
        v = 0.8 * v + delta
        X = X - 0.7 * (delta + 0.8 * v if nesterov else v)
        theirs.append(X)
    agree(ours, theirs)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_mean_takes_the_outer_step_of_the_mean_change(graph):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)
    algorithm = GossipOuterMomentum(SGD(), P, SGD(momentum=0.8, nesterov=True), 0.7)
    X = trained(algorithm, schedule, problem, local_steps=2)
    v = zeros(P)
    for t in range(ROUNDS):
        ends = [local_path(problem, X[t, i], i, range(2 * t, 2 * t + 2)) for i in range(N)]
        delta = X[t].mean(axis=0) - np.mean(ends, axis=0)
        v = 0.8 * v + delta
        mean = X[t].mean(axis=0) - 0.7 * (delta + 0.8 * v)
        np.testing.assert_allclose(X[t + 1].mean(axis=0), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_on_the_complete_graph_gossip_is_diloco_to_the_bit(optimizer):
    n, outer = 8, SGD(momentum=0.9, nesterov=True)
    everybody, complete = Averaging(range(n)), make_schedule("complete", "auto", n)
    algorithm = GossipOuterMomentum(optimizer, P, outer, 0.7)
    gossip = trained(algorithm, complete, Quadratics(n), local_steps=3)
    algorithm = OuterMomentum(optimizer, P, outer, 0.7)
    diloco = trained(algorithm, everybody, Quadratics(n), server=True, local_steps=3)
    assert (gossip == diloco).all()
    assert np.abs(gossip[-1]).max() > 0.05


@pytest.mark.parametrize("graph", ["ring", "random_matching", "path"])
def test_with_its_defaults_gossip_outer_momentum_keeps_agents_together(graph):
    problem, schedule = Quadratics(n=16, noise=0.0), make_schedule(graph, "auto", 16, seed=1)
    algorithm = GossipOuterMomentum(SGD(), P, SGD(momentum=0.9, nesterov=True), 0.7)
    X = trained(algorithm, schedule, problem, rounds=160, lr=0.01, local_steps=5)
    away = np.linalg.norm(X.mean(axis=1) - problem.optimum, axis=1)
    assert away[-1] < away[0] / 2
    assert np.abs(X[120:]).max() < np.abs(problem.c).max()


def test_heavy_ball_is_slowmo_while_the_step_size_stays():
    problem, averaging = Quadratics(), Averaging(range(N))
    algorithm = OuterMomentum(SGD(), P, SGD(momentum=0.6), 0.9)
    ours = trained(algorithm, averaging, problem, server=True, local_steps=2)
    x, u, theirs = np.zeros(P), np.zeros(P), [zeros()]
    for t in range(ROUNDS):
        ends = [local_path(problem, x, i, range(2 * t, 2 * t + 2)) for i in range(N)]
        u = 0.6 * u + (x - np.mean(ends, axis=0)) / LR
        x = x - 0.9 * LR * u
        theirs.append(np.tile(x, (N, 1)))
    agree(ours, theirs)


def test_outer_momentum_without_momentum_is_fedavg():
    problem, schedule = Quadratics(), Participation(N, 3, seed=4)
    plain = trained(FedAvg(SGD(), P), schedule, problem, server=True, local_steps=3)
    outer = trained(OuterMomentum(SGD(), P, SGD()), schedule, problem, server=True, local_steps=3)
    np.testing.assert_allclose(plain, outer, rtol=0, atol=1e-12)


# --- Gradient tracking, exact diffusion ---------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("overlap", [True, False])
def test_gradient_tracking_is_its_recursion(graph, overlap):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)
    ours = trained(GradientTracking(SGD(), P), schedule, problem, overlap=overlap)
    X, Y, old, theirs = zeros(), zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        W, G = dense(schedule, t), problem.slopes(X, t)
        Y = W @ Y + G - old if overlap else W @ (Y + G - old)
        X, old = W @ X - LR * Y, G
        theirs.append(X)
    agree(ours, theirs)


@pytest.mark.parametrize("overlap", [True, False])
def test_the_tracker_sums_to_the_gradients(overlap):
    problem, schedule = Quadratics(), make_schedule("one_peer_exponential", "auto", N)
    run = make_run(GradientTracking(SGD(), P), schedule, problem, overlap=overlap)
    train(run)
    tracked = sum(agent.state.y for agent in run.agents)
    torch.testing.assert_close(
        tracked, sum(agent.state.grad for agent in run.agents), rtol=0, atol=1e-13
    )
    X = np.stack(run.monitor.path)[-2:]
    moved = (X[0] - X[1]).mean(axis=0) * N / LR
    np.testing.assert_allclose(moved, tracked.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("graph", SYMMETRIC)
def test_exact_diffusion_is_its_recursion(graph):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)
    ours = trained(ExactDiffusion(SGD(), P), schedule, problem)
    X, psi_old, theirs = zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        psi = X - LR * problem.slopes(X, t)
        X, psi_old = (np.eye(N) + dense(schedule, t)) / 2 @ (psi + X - psi_old), psi
        theirs.append(X)
    agree(ours, theirs)


def test_exact_diffusion_is_the_two_step_form_of_d2_with_lazy_weights():
    """x_t+1 = W~ (2 x_t - x_t-1 - eta (g_t - g_t-1)), D2 with W~ = (I + W) / 2 in place of W."""
    problem, schedule = Quadratics(), make_schedule("ring", "metropolis", N)
    ours = trained(ExactDiffusion(SGD(), P), schedule, problem)
    W = (np.eye(N) + dense(schedule, 0)) / 2
    old, G_old = zeros(), problem.slopes(zeros(), 0)
    X = W @ (old - LR * G_old)
    theirs = [old, X]
    for t in range(1, ROUNDS):
        G = problem.slopes(X, t)
        X, old, G_old = W @ (2 * X - old - LR * (G - G_old)), X, G
        theirs.append(X)
    agree(ours, theirs)


BIAS_FREE = [
    (GradientTracking(SGD(), P), "ring"),
    (GradientTracking(SGD(), P), "exponential"),
    (GradientTracking(SGD(), P), "one_peer_exponential"),
    (GradientTracking(SGD(), P), "random_matching"),
    (GradientTracking(SGD(momentum=0.5), P), "ring"),
    (GradientTracking(SGD(max_norm=0.5), P), "ring"),
    (ExactDiffusion(SGD(), P), "ring"),
    (ExactDiffusion(SGD(), P), "star"),
    (ExactDiffusion(SGD(), P), "random_matching"),
    (ExactDiffusion(SGD(momentum=0.5), P), "ring"),
]


@cache
def biased_by(graph):
    """Return what dsgd makes of the agents in 500 rounds of one step size on a graph."""
    schedule = make_schedule(graph, "auto", N, seed=1)
    return trained(Dsgd(SGD(), P), schedule, Quadratics(noise=0.0), rounds=500, overlap=True)


@pytest.mark.parametrize("algorithm, graph", BIAS_FREE)
def test_a_constant_step_reaches_the_optimum_at_which_dsgd_never_arrives(algorithm, graph):
    problem = Quadratics(noise=0.0)
    schedule = make_schedule(graph, "auto", N, seed=1)
    exact = trained(algorithm, schedule, problem, rounds=500)
    biased = biased_by(graph)
    assert np.abs(exact[-1] - problem.optimum).max() < 1e-7
    assert np.abs(biased[-1] - problem.optimum).max() > 0.02
    if schedule.mixing(0) is schedule.mixing(1):
        # DSGD has stopped there: more rounds would not help.
        assert np.abs(biased[-1] - biased[-100]).max() < 1e-8


@pytest.mark.parametrize("algorithm", [GradientTracking, ExactDiffusion])
def test_weight_decay_with_momentum_leads_to_the_optimum_of_the_decayed_loss(algorithm):
    problem = Quadratics(noise=0.0)
    optimizer = SGD(momentum=0.5, nesterov=True, weight_decay=0.3)
    schedule = make_schedule("ring", "auto", N)
    X = trained(algorithm(optimizer, P), schedule, problem, rounds=500)
    pull = np.einsum("npq,nq->p", problem.A, problem.c)
    decayed = np.linalg.solve(problem.A.sum(axis=0) + 0.3 * N * np.eye(P), pull)
    np.testing.assert_allclose(X[-1], np.tile(decayed, (N, 1)), rtol=0, atol=1e-7)
    assert np.abs(decayed - problem.optimum).max() > 0.02


def test_exact_diffusion_is_not_exact_where_agents_clip_alone():
    """Why the configuration refuses it: its fixed point has sum_i clip(g_i) = 0."""
    problem = Quadratics(noise=0.0)
    schedule = make_schedule("ring", "auto", N)
    X = trained(ExactDiffusion(SGD(max_norm=0.5), P), schedule, problem, rounds=1000)
    slopes = problem.slopes(X[-1], 0)
    clipped = slopes * np.minimum(1, 0.5 / np.linalg.norm(slopes, axis=1))[:, None]
    assert np.abs(clipped.sum(axis=0)).max() < 1e-3
    assert np.abs(slopes.sum(axis=0)).max() > 0.5
    assert np.abs(X[-1] - problem.optimum).max() > 0.1


# --- Quasi-global momentum, push-sum ------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_quasi_global_momentum_is_its_recursion(graph, overlap, local_steps):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)

    def lr(step):
        return LR / (1 + 0.05 * step)

    algorithm = QuasiGlobalMomentum(SGD(), P, beta=0.9, mu=0.8)
    ours = trained(algorithm, schedule, problem, overlap=overlap, local_steps=local_steps, lr=lr)
    X, M, theirs = zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        W, Y, path = dense(schedule, t), X, 0.0
        for step in range(t * local_steps, (t + 1) * local_steps):
            Y = Y - lr(step) * (0.9 * M + problem.slopes(Y, step))
            path += lr(step)
        new = W @ X + Y - X if overlap else W @ Y
        M = 0.8 * M + 0.2 * (X - new) / path
        X = new
        theirs.append(X)
    agree(ours, theirs)


def test_alone_quasi_global_momentum_is_quasi_hyperbolic():
    """Ma and Yarats, 2019: x <- x - a ((1 - nu) g + nu v), v <- b v + (1 - b) g."""
    problem, schedule = Quadratics(n=1), make_schedule("complete", "auto", 1)
    beta, mu = 0.7, 0.8
    ours = trained(QuasiGlobalMomentum(SGD(), P, beta, mu), schedule, problem)
    x, v, b = np.zeros(P), np.zeros(P), mu + (1 - mu) * beta
    for t in range(ROUNDS):
        g = problem.slopes(x[None], t)[0]
        v = b * v + (1 - b) * g
        x = x - LR / (1 - beta) * ((1 - beta / b) * g + beta / b * v)
        np.testing.assert_allclose(ours[t + 1, 0], x, rtol=0, atol=1e-12)


def test_quasi_global_momentum_refuses_another_momentum():
    for optimizer in (SGD(momentum=0.9), AdamW()):
        with pytest.raises(ValueError, match="plain steps"):
            QuasiGlobalMomentum(optimizer, P)


@pytest.mark.parametrize(
    "graph, weights",
    [("exponential", "push"), ("star", "push"), ("path", "push"), ("one_peer_exponential", "auto"),
     ("random_matching", "auto"), ("star", "metropolis")],
)  # fmt: skip
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("local_steps, momentum", [(1, 0.0), (3, 0.9)])
def test_push_sum_is_its_recursion(graph, weights, overlap, local_steps, momentum):
    problem, schedule = Quadratics(), make_schedule(graph, weights, N, seed=3, push_sum=True)
    ours = trained(PushSum(SGD(momentum=momentum), P), schedule, problem, overlap=overlap,
                   local_steps=local_steps)  # fmt: skip
    X, V, w, theirs = zeros(), zeros(), np.ones((N, 1)), [zeros()]
    for t in range(ROUNDS):
        A, Y = dense(schedule, t), X
        np.testing.assert_allclose(A.sum(axis=0), 1)
        for step in range(t * local_steps, (t + 1) * local_steps):
            V = momentum * V + problem.slopes(Y / w, step)
            Y = Y - LR * V
        X = A @ X + Y - X if overlap else A @ Y
        w = A @ w
        theirs.append(X / w)
    agree(ours, theirs)
    if weights == "push" and graph != "exponential":
        assert np.abs(w - 1).max() > 0.1


def test_push_sum_finds_the_average_where_plain_gossip_drifts():
    schedule = make_schedule("star", "push", N, push_sum=True)
    world, start = LocalWorld(N), torch.from_numpy(Quadratics().c)
    algorithm = PushSum(SGD(), P)
    exchange = world.exchange(P + 1, torch.float64)
    states = [algorithm.init(start[i].clone()) for i in range(N)]
    for t in range(400):
        for i, state in enumerate(states):
            exchange.start(i, t, schedule.mixing(t).row(i), algorithm.message(state))
        exchange.collect(t)
        for i, state in enumerate(states):
            algorithm.mix(state, exchange.inbox(i, t))
    X = torch.stack([state.x for state in states])
    torch.testing.assert_close(X, start.mean(dim=0).expand(N, P), rtol=0, atol=1e-12)
    limit = np.linalg.matrix_power(dense(schedule, 0), 400) @ start.numpy()
    assert np.abs(limit - start.mean(dim=0).numpy()).max() > 0.1
    assert sum(state.weight for state in states) == pytest.approx(N, abs=1e-12)


# --- What all have in common --------------------------------------------------------------------

GOSSIP = {
    "gradient_tracking": lambda m: GradientTracking(SGD(), m),
    "exact_diffusion": lambda m: ExactDiffusion(SGD(), m),
    "quasi_global_momentum": lambda m: QuasiGlobalMomentum(SGD(), m, beta=0.0),
    "push_sum": lambda m: PushSum(SGD(), m),
    "gossip_outer_momentum": lambda m: GossipOuterMomentum(SGD(), m, SGD(), 1.0),
}
SERVER = {
    "fedavg": lambda m: FedAvg(SGD(), m),
    "outer_momentum": lambda m: OuterMomentum(SGD(), m, SGD(), 1.0),
}
EVERY = {**GOSSIP, **SERVER}


def common(name, n=N, **options):
    """Train one algorithm on the complete graph, or with the server."""
    schedule = Averaging(range(n)) if name in SERVER else make_schedule("complete", "auto", n)
    algorithm = EVERY[name](P - options.get("personal", 0))
    return trained(algorithm, schedule, Quadratics(n), server=name in SERVER, **options)


@pytest.mark.parametrize("name", EVERY)
def test_a_single_agent_does_plain_sgd(name):
    problem, x = Quadratics(n=1), np.zeros(P)
    ours = common(name, n=1)
    for t in range(ROUNDS):
        x = x - LR * problem.slopes(x[None], t)[0]
        np.testing.assert_allclose(ours[t + 1, 0], x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["fedavg", "outer_momentum", "push_sum", "quasi_global_momentum",
                                  "gradient_tracking", "gossip_outer_momentum"])  # fmt: skip
def test_with_uniform_weights_among_all_it_is_centralized(name):
    central = trained(Centralized(SGD()), Averaging(range(N)), Quadratics(), server=True)
    np.testing.assert_allclose(common(name), central, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GOSSIP)
def test_the_mean_follows_the_mean_gradient(name):
    """Doubly stochastic weights move agents, never their mean."""
    problem, schedule = Quadratics(), make_schedule("ring", "metropolis", N)
    X = trained(GOSSIP[name](P), schedule, problem)
    for t in range(ROUNDS):
        step = LR * problem.slopes(X[t], t).mean(axis=0)
        np.testing.assert_allclose(
            X[t + 1].mean(axis=0), X[t].mean(axis=0) - step, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("name", EVERY)
def test_personal_parameters_never_leave_their_agent(name):
    """With A_i diagonal the personal coordinates are trained as if each agent were alone."""
    problem = Quadratics()
    problem.A = problem.A * np.eye(P)
    schedule = Averaging(range(N)) if name in SERVER else make_schedule("ring", "auto", N)
    algorithm = EVERY[name](P - 2)
    assert algorithm.message(algorithm.init(torch.zeros(P))).shape == (
        algorithm.message_size(P - 2),
    )
    X = trained(algorithm, schedule, problem, server=name in SERVER, personal=2)
    alone = zeros()
    for t in range(ROUNDS):
        alone = alone - LR * problem.slopes(alone, t)
    np.testing.assert_allclose(X[-1, :, 3:], alone[:, 3:], rtol=0, atol=1e-12)
    assert np.abs(X[-1, :, :3] - alone[:, :3]).max() > 0.05


RESUMED = {
    "fedavg": (FedAvg(SGD(momentum=0.9), P - 1), Participation(N, 3, seed=1), {"local_steps": 2}),
    "outer_momentum": (
        OuterMomentum(AdamW(), P - 1, SGD(momentum=0.9, nesterov=True), 0.7),
        Averaging(range(N)),
        {"local_steps": 3},
    ),
    "gossip_outer_momentum": (
        GossipOuterMomentum(AdamW(), P - 1, SGD(momentum=0.9, nesterov=True), 0.7),
        make_schedule("random_matching", "auto", N, seed=2),
        {"local_steps": 3},
    ),
    "gradient_tracking": (
        GradientTracking(AdamW(), P - 1),
        make_schedule("one_peer_exponential", "auto", N),
        {"overlap": True},
    ),
    "exact_diffusion": (
        ExactDiffusion(SGD(momentum=0.5), P - 1),
        make_schedule("random_matching", "auto", N, seed=2),
        {},
    ),
    "quasi_global_momentum": (
        QuasiGlobalMomentum(SGD(weight_decay=0.1), P - 1),
        make_schedule("random_matching", "auto", N, seed=2),
        {"overlap": True, "local_steps": 2},
    ),
    "push_sum": (
        PushSum(SGD(momentum=0.9), P - 1),
        make_schedule("path", "push", N, push_sum=True),
        {"overlap": True, "local_steps": 2},
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_restored_state_goes_on_to_the_bit(name):
    algorithm, schedule, options = RESUMED[name]
    options = {**options, "personal": 1, "server": name in SERVER}
    goes_on_to_the_bit(algorithm, schedule, **options)
