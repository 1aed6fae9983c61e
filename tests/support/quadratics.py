"""Agents with quadratic objectives, trained by the very loop of ``decdpo.train`` in float64."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch

from decdpo.checkpoint.state import Snapshot, restore
from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.stats import Stats
from decdpo.run import Agent, Run
from decdpo.topology.schedule import round_weights
from decdpo.train import Ending, train

N, P, ROUNDS = 6, 5, 20
LR = 0.05


class Quadratics:
    """The objective of the loop. taken : the (agent, step) of every gradient, in order."""

    steps_together = False

    def __init__(self, n=N, seed=0, noise=0.3):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(n, P, P))
        self.A = root @ root.transpose(0, 2, 1) / P + 0.5 * np.eye(P)
        self.c = rng.normal(size=(n, P))
        self.noise = noise * rng.normal(size=(200, n, P))
        self.taken = []

    def slopes(self, X, step):
        """Return the (n, P) gradients of all agents at their own rows of X."""
        return np.einsum("npq,nq->np", self.A, X - self.c) + self.noise[step % 200]

    @property
    def optimum(self):
        """The (P,) minimum of the mean objective without noise."""
        return np.linalg.solve(self.A.sum(axis=0), np.einsum("npq,nq->p", self.A, self.c))

    def gradients(self, batches):
        for params, agent, (step,), *_ in batches:
            self.taken.append((agent, int(step)))
            slope = self.A[agent] @ (params.data.numpy() - self.c[agent])
            params.grad.copy_(torch.from_numpy(slope + self.noise[step % 200, agent]))
            yield Stats.zero()


class Recorder:
    """The monitor of the loop: keeps every agent's parameters after every round."""

    def __init__(self):
        self.path = []

    def begin(self, run):
        pass

    def sound(self, round, run, *, last):
        return True

    def working(self, what):
        return nullcontext()

    def observe(self, round, run, seconds):
        self.path.append(np.stack([agent.params.data.numpy().copy() for agent in run.agents]))

    def sync(self):
        pass


class NoStore:
    def due(self, done):
        return False

    def save(self, done, agents):
        raise AssertionError("nothing is due")

    def poll(self):
        pass

    def flush(self):
        pass


def make_run(algorithm, schedule, problem, *, lr=LR, rounds=ROUNDS, local_steps=1, overlap=False,
             server=False, personal=0, first=0):  # fmt: skip
    """Put a run together as ``decdpo.build`` does."""
    n, shared = len(problem.c), P - personal
    world = LocalWorld(n)
    layout = Layout(("x",), ((P,),), shared, torch.float64)

    def new():
        return world.exchange(algorithm.message_size(shared), torch.float64)

    exchange = ServerExchange(new(), new(), all_hear=n) if server else new()
    grad = torch.zeros(P, dtype=torch.float64)
    sampler = SimpleNamespace(rows=lambda step, size: np.array([step]))
    agents = []
    for i in range(n):
        state = algorithm.init(torch.zeros(P, dtype=torch.float64))
        agents.append(Agent(i, FlatParams(layout, state.x, grad), state, i, sampler, Stats.zero()))
    rate = lr if callable(lr) else lambda step: lr
    return Run(world, exchange, algorithm, problem, schedule, agents, rate, local_steps, 1, overlap,
               rounds, Recorder(), NoStore(), first)  # fmt: skip


def trained(algorithm, schedule, problem, **options):
    """Train, and return X (rounds + 1, n, P)."""
    run = make_run(algorithm, schedule, problem, **options)
    assert train(run) is Ending.DONE
    return np.stack([np.zeros_like(run.monitor.path[0]), *run.monitor.path])


def goes_on_to_the_bit(algorithm, schedule, **options):
    """Assert that a run whose states are saved after round 9, and restored, takes the same path."""
    whole = trained(algorithm, schedule, Quadratics(), **options)
    half = make_run(algorithm, schedule, Quadratics(), rounds=9, **options)
    train(half)
    records = Snapshot().take({agent.id: agent.state for agent in half.agents})
    fresh = make_run(algorithm, schedule, Quadratics(), first=9, **options)
    for agent, record in zip(fresh.agents, records):
        address = agent.params.data.data_ptr()
        restore(
            agent.state,
            record.structure,
            record.scalars,
            lambda path, tensor, record=record: tensor.copy_(record.tensors[path]),
        )
        assert "x" in record.tensors and agent.params.data.data_ptr() == address
    train(fresh)
    assert (np.stack(fresh.monitor.path) == whole[10:]).all()
    assert (whole[9] != whole[10]).any()


def dense(schedule, t):
    return round_weights(schedule.mixing(t), N).toarray()


def zeros(*shape):
    return np.zeros(shape or (N, P))


def agree(ours, theirs):
    np.testing.assert_allclose(ours, np.stack(theirs), rtol=0, atol=1e-10)
    assert np.abs(theirs[-1]).max() > 0.05 and np.ptp(theirs[-1], axis=1).min() > 0.01
