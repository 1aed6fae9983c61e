"""CHOCO-SGD against its dense oracle, which keeps every public copy; what it preserves and reaches.

The agents hold heterogeneous quadratics f_i(x) = 1/2 (x - c_i)^T A_i (x - c_i), and gradients are
exact.
"""

import numpy as np
import pytest
import torch

from decdpo.algorithms.gossip.choco import Choco
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.checkpoint.state import Snapshot, digest, leaves, restore
from decdpo.codecs.identity import Identity
from decdpo.codecs.quantize import Quantize
from decdpo.codecs.randomk import RandomK
from decdpo.codecs.topk import TopK
from decdpo.comm.local import LocalWorld
from decdpo.params.optim import SGD, AdamW
from decdpo.rng import Stream, generator
from decdpo.topology.schedule import make_schedule

N, P = 6, 48
F64 = torch.float64
SEED = 7
CODECS = {
    "identity": Identity(P, F64),
    "topk": TopK(P, F64, 5),
    "randomk": RandomK(P, F64, 9, SEED),
    "int8": Quantize(P, F64, 8, SEED),
    "int4": Quantize(P, F64, 4, SEED),
}


def quadratics(seed=0):
    """Return A (N, P, P), positive definite, and c (N, P)."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(N, P, P))
    return root @ root.transpose(0, 2, 1) / P + 0.5 * np.eye(P), rng.normal(size=(N, P))


def weights(graph):
    schedule = make_schedule(graph, "auto", N)
    rows = [schedule.mixing(0).row(i) for i in range(N)]
    W = np.zeros((N, N))
    for i, row in enumerate(rows):
        W[i, i] = row.own
        W[i, list(row.sources)] = row.weights
    return rows, W


class Simulation:
    """Train like ``decdpo.train`` does, with exact gradients; A is (N, P, P), or its diagonals."""

    def __init__(self, algorithm, rows, problem, *, lr, overlap=False, dtype=F64):
        self.algorithm, self.rows, self.lr, self.overlap = algorithm, rows, lr, overlap
        self.A, self.c = (torch.from_numpy(part).to(dtype) for part in problem)
        kind = torch.uint8 if isinstance(algorithm, Choco) else dtype
        size = self.c.shape[1]
        self.exchange = LocalWorld(N).exchange(algorithm.message_size(size), kind)
        self.states = [algorithm.init(torch.zeros(size, dtype=dtype)) for _ in range(N)]

    @property
    def X(self):
        return np.stack([state.x.numpy().copy() for state in self.states])

    def start(self, t):
        for i, state in enumerate(self.states):
            self.exchange.start(i, t, self.rows[i], self.algorithm.message(state))

    def round(self, t, local_steps=1):
        if self.overlap:
            self.start(t)
        for i, state in enumerate(self.states):
            for _ in range(local_steps):
                gap = state.x - self.c[i]
                grad = self.A[i] @ gap if self.A.dim() == 3 else self.A[i] * gap
                self.algorithm.local_step(state, grad, self.lr)
        if not self.overlap:
            self.start(t)
        self.exchange.collect(t)
        for i, state in enumerate(self.states):
            self.algorithm.mix(state, self.exchange.inbox(i, t))
        return self.X


def oracle_code(name, D, t):
    """Return C(D), row by row, written independently of the codecs where that says something."""
    Q = np.zeros_like(D)
    for i, d in enumerate(D):
        if name == "topk":
            kept = np.argsort(-np.abs(d), kind="stable")[:5]
            Q[i, kept] = d[kept]
        elif name == "randomk":
            ends = np.arange(10) * P // 9
            kept = generator(SEED, Stream.CODEC, round=t).integers(ends[:-1], ends[1:])
            Q[i, kept] = d[kept]
        else:
            codec = CODECS[name]
            code = torch.empty(codec.nbytes, dtype=torch.uint8)
            codec.encode(torch.from_numpy(d), code, t)
            codec.add(code, torch.from_numpy(Q[i]), t)
    return Q


def oracle(name, W, problem, *, lr, gamma, local_steps, overlap, rounds):
    A, c = problem
    X, public = np.zeros((N, P)), np.zeros((N, P))
    for t in range(rounds):
        Y = X.copy()
        for _ in range(local_steps):
            Y = Y - lr * np.einsum("npq,nq->np", A, Y - c)
        public = public + oracle_code(name, (X if overlap else Y) - public, t)
        X = Y + gamma * (W @ public - public)
        yield X


@pytest.mark.parametrize("graph", ["ring", "star", "exponential"])
@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("overlap, local_steps", [(False, 1), (True, 1), (False, 3)])
def test_choco_is_its_dense_oracle(graph, name, overlap, local_steps):
    problem, (rows, W) = quadratics(), weights(graph)
    ours = Simulation(Choco(SGD(), P, CODECS[name], 0.3), rows, problem, lr=0.05, overlap=overlap)
    options = dict(lr=0.05, gamma=0.3, local_steps=local_steps, overlap=overlap, rounds=20)
    for t, theirs in enumerate(oracle(name, W, problem, **options)):
        np.testing.assert_allclose(ours.round(t, local_steps), theirs, rtol=0, atol=1e-10)
    assert np.abs(theirs).max() > 0.1 and np.ptp(theirs, axis=0).max() > 0.01


@pytest.mark.parametrize("overlap", [True, False])
def test_with_the_identity_and_a_full_step_it_is_dsgd(overlap):
    problem, (rows, _) = quadratics(), weights("ring")
    options, inner = dict(lr=0.05, overlap=overlap), SGD(momentum=0.9)
    ours = Simulation(Choco(inner, P, CODECS["identity"], 1.0), rows, problem, **options)
    theirs = Simulation(Dsgd(inner, P), rows, problem, **options)
    for t in range(20):
        np.testing.assert_allclose(ours.round(t), theirs.round(t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(CODECS))
def test_the_mean_moves_by_the_gradients_alone(name):
    (A, c), (rows, _) = problem, _ = quadratics(), weights("ring")
    run = Simulation(Choco(SGD(), P, CODECS[name], 0.4), rows, problem, lr=0.05)
    before = run.X
    for t in range(30):
        expected = before.mean(axis=0) - 0.05 * np.einsum("npq,nq->np", A, before - c).mean(axis=0)
        before = run.round(t)
        np.testing.assert_allclose(before.mean(axis=0), expected, rtol=0, atol=1e-13)
    assert np.ptp(before, axis=0).max() > 0.01


@pytest.mark.parametrize("maker", [TopK.of_ratio, RandomK.of_ratio])
def test_a_sixteenth_of_the_bytes_reaches_the_neighbourhood_of_the_optimum(maker):
    size, rng = 480, np.random.default_rng(0)
    a, c = rng.uniform(0.5, 2.0, (N, size)), rng.normal(size=(N, size))
    c += 2 * rng.normal(size=size)
    best = (a * c).sum(axis=0) / a.sum(axis=0)
    rows, _ = weights("ring")
    codec = maker(size, F64, 1 / 16)
    assert codec.nbytes <= size * 8 / 16

    def loss(x):
        return 0.5 * (a * (x - c) ** 2).sum(axis=1).mean()

    run = Simulation(Choco(SGD(), size, codec, codec.delta), rows, (a, c), lr=0.01)
    for t in range(1000):
        X = run.round(t)
    mean = X.mean(axis=0)
    assert np.linalg.norm(mean - best) < 0.03 * np.linalg.norm(best)
    assert loss(best) < loss(mean) < 1.003 * loss(best) < 0.6 * loss(0 * best)
    # Most of what remains is the distance between agents, which the constant step keeps open.
    assert ((X - mean) ** 2).sum(axis=1).mean() < 0.1 * ((c - best) ** 2).sum(axis=1).mean()


@pytest.mark.parametrize("name", ["topk", "int4"])
def test_a_run_restored_from_its_state_continues_to_the_bit(name):
    problem, (rows, _) = quadratics(), weights("ring")
    algorithm = Choco(AdamW(), P, CODECS[name], 0.3)
    whole = Simulation(algorithm, rows, problem, lr=0.05)
    for t in range(6):
        whole.round(t)
    saved = Snapshot().take(dict(enumerate(whole.states)))
    again = Simulation(Choco(AdamW(), P, CODECS[name], 0.3), rows, problem, lr=0.05)
    for record, state in zip(saved, again.states):
        fill = record.tensors
        restore(state, record.structure, record.scalars, lambda p, x: x.copy_(fill[p]))
    for t in range(6, 12):
        np.testing.assert_array_equal(whole.round(t), again.round(t))
    first, second = (Snapshot().take(dict(enumerate(s.states))) for s in (whole, again))
    assert [digest(r) for r in first] == [digest(r) for r in second]


def test_only_the_shared_parameters_travel_and_the_memory_is_three_vectors():
    codec = TopK(3, torch.float32, 2)
    algorithm = Choco(SGD(), 3, codec, 0.5)
    state = algorithm.init(torch.arange(5.0))
    state.x += torch.tensor([0.5, -2.0, 1.0, 7.0, 7.0])
    assert algorithm.message_size(3) == codec.nbytes == algorithm.message(state).numel()
    code = algorithm.message(state).clone()
    out = torch.zeros(3)
    codec.add(code, out, 0)
    assert out.tolist() == [0.0, -2.0, 1.0]
    large = [leaf for leaf in leaves(state).values() if getattr(leaf, "numel", int)() >= 3]
    assert sum(leaf.numel() for leaf in large) == 5 + 3 + 3
