"""Every algorithm against its dense oracle: all agents at once, in float64, in matrix form.

The agents hold heterogeneous quadratics f_i(x) = 1/2 (x - c_i)^T A_i (x - c_i), and gradients are
exact.
"""

import numpy as np
import pytest
import torch

from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.local import Local
from decdpo.algorithms.server.centralized import Centralized
from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.params.optim import SGD
from decdpo.topology.schedule import Averaging, Isolated, make_schedule

N, P, ROUNDS = 6, 5, 20


def quadratics(seed=0):
    """Return A (N, P, P), positive definite, and c (N, P)."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(N, P, P))
    return root @ root.transpose(0, 2, 1) / P + 0.5 * np.eye(P), rng.normal(size=(N, P))


def gradients(problem, X):
    """Return the (N, P) gradients of every agent at its own row of X."""
    A, c = problem
    return np.einsum("npq,nq->np", A, X - c)


def dense(schedule, t):
    """Return W (N, N) of round t."""
    W = np.zeros((N, N))
    for i in range(N):
        row = schedule.mixing(t).row(i)
        W[i, i] = row.own
        W[i, list(row.sources)] = row.weights
    return W


def run(algorithm, schedule, problem, *, lr, local_steps=1, overlap=False, server=False):
    """Train like ``decdpo.train`` does, with exact gradients; return X (ROUNDS + 1, N, P)."""
    world = LocalWorld(N)

    def new():
        return world.exchange(P, torch.float64)

    exchange = ServerExchange(new(), new()) if server else new()
    silent = algorithm.message_size(P) == 0
    A, c = (torch.from_numpy(part) for part in problem)
    states = [algorithm.init(torch.zeros(P, dtype=torch.float64)) for _ in range(N)]
    path = [np.zeros((N, P))]

    def start(t):
        for i, state in enumerate(states):
            if not silent:
                exchange.start(i, t, schedule.mixing(t).row(i), algorithm.message(state))

    for t in range(ROUNDS):
        if overlap:
            start(t)
        for i, state in enumerate(states):
            for _ in range(local_steps):
                algorithm.local_step(state, A[i] @ (state.x - c[i]), lr)
        if not overlap:
            start(t)
        exchange.collect(t)
        for i, state in enumerate(states):
            if not silent:
                algorithm.mix(state, exchange.inbox(i, t))
        path.append(np.stack([state.x.numpy().copy() for state in states]))
    return np.stack(path)


def oracle(problem, mixing, *, lr, local_steps=1, overlap=False, momentum=0.0):
    """The same in matrix form: X <- W X - eta G, or X <- W (X - eta G)."""
    X, V, path = np.zeros((N, P)), np.zeros((N, P)), [np.zeros((N, P))]
    for t in range(ROUNDS):
        W, Y = mixing(t), X.copy()
        for _ in range(local_steps):
            V = momentum * V + gradients(problem, Y)
            Y = Y - lr * V
        X = W @ X + (Y - X) if overlap else W @ Y
        path.append(X.copy())
    return np.stack(path)


@pytest.mark.parametrize("graph", ["ring", "complete", "star", "exponential", "random_matching"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("local_steps, momentum", [(1, 0.0), (3, 0.0), (2, 0.9)])
def test_dsgd_is_its_dense_oracle(graph, overlap, local_steps, momentum):
    problem, schedule = quadratics(), make_schedule(graph, "auto", N, seed=3)
    options = dict(lr=0.05, local_steps=local_steps, overlap=overlap)
    ours = run(Dsgd(SGD(momentum=momentum), P), schedule, problem, **options)
    theirs = oracle(problem, lambda t: dense(schedule, t), momentum=momentum, **options)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert np.abs(theirs[-1]).max() > 0.1


def test_local_is_dsgd_without_neighbours():
    problem = quadratics()
    ours = run(Local(SGD(), P), Isolated(), problem, lr=0.05, local_steps=2)
    theirs = oracle(problem, lambda t: np.eye(N), lr=0.05, local_steps=2)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_centralized_follows_the_mean_gradient():
    problem = quadratics()
    ours = run(Centralized(SGD()), Averaging(range(N)), problem, lr=0.05, server=True)
    x = np.zeros(P)
    for t in range(ROUNDS):
        x = x - 0.05 * gradients(problem, np.tile(x, (N, 1))).mean(axis=0)
        np.testing.assert_allclose(ours[t + 1], np.tile(x, (N, 1)), rtol=0, atol=1e-12)
    assert (ours[-1] == ours[-1][0]).all()


def test_centralized_reaches_the_optimum_that_dsgd_with_a_constant_step_misses():
    A, c = problem = quadratics()
    best = np.linalg.solve(A.sum(axis=0), np.einsum("npq,nq->p", A, c))
    central = run(Centralized(SGD()), Averaging(range(N)), problem, lr=0.4, server=True)
    ring = make_schedule("ring", "metropolis", N)
    gossip = run(Dsgd(SGD(), P), ring, problem, lr=0.2)
    assert np.abs(central[-1] - best).max() < 0.02
    assert np.abs(gossip[-1].mean(axis=0) - best).max() > 0.02


@pytest.mark.parametrize("overlap", [True, False])
def test_mixing_alone_preserves_the_mean_and_reaches_consensus(overlap):
    problem, schedule = quadratics(), make_schedule("ring", "metropolis", N)
    world = LocalWorld(N)
    exchange = world.exchange(P, torch.float64)
    algorithm = Dsgd(SGD(), P)
    X0 = torch.from_numpy(problem[1])
    states = [algorithm.init(X0[i].clone()) for i in range(N)]
    for t in range(60):
        for i, state in enumerate(states):
            exchange.start(i, t, schedule.mixing(t).row(i), algorithm.message(state))
        exchange.collect(t)
        for i, state in enumerate(states):
            algorithm.mix(state, exchange.inbox(i, t))
    X = torch.stack([state.x for state in states])
    torch.testing.assert_close(X.mean(dim=0), X0.mean(dim=0), rtol=0, atol=1e-14)
    assert (X - X.mean(dim=0)).abs().max() < 1e-8


def test_on_the_complete_graph_adapt_then_combine_is_centralized():
    problem, schedule = quadratics(), make_schedule("complete", "uniform", N)
    gossip = run(Dsgd(SGD(), P), schedule, problem, lr=0.05)
    central = run(Centralized(SGD()), Averaging(range(N)), problem, lr=0.05, server=True)
    np.testing.assert_allclose(gossip, central, rtol=0, atol=1e-12)


def test_only_the_shared_parameters_travel():
    algorithm = Dsgd(SGD(), num_shared=3)
    state = algorithm.init(torch.arange(5.0))
    assert algorithm.message_size(3) == 3
    assert algorithm.message(state).tolist() == [0.0, 1.0, 2.0]
    assert algorithm.message(state).data_ptr() == state.x.data_ptr()
