"""The gate of the training loop: what is not a finite number is neither told nor saved."""

import inspect
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decdpo import train as train_module
from decdpo.algorithms.catalogue import ALGORITHMS
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.exact_diffusion import ExactDiffusion
from decdpo.algorithms.gossip.gradient_tracking import GradientTracking
from decdpo.algorithms.server.centralized import Centralized
from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.config import needs
from decdpo.data.shard import SourceRows
from decdpo.errors import NumericalError
from decdpo.metrics import divergence
from decdpo.params.flat import FlatParams, Layout
from decdpo.params.optim import SGD
from decdpo.policies import objective
from decdpo.policies.stats import Stats
from decdpo.run import Agent, Run
from decdpo.topology.row import Row
from decdpo.topology.schedule import Averaging, make_schedule
from decdpo.train import train

N, P = 4, 3
RESTING = Row(1.0, (), (), (), active=False)
RING = make_schedule("ring", "auto", N)
KINDS = {
    "dsgd": (Dsgd(SGD(), P), RING, False),
    "dsgd, overlapped": (Dsgd(SGD(), P), RING, True),
    "gradient tracking": (GradientTracking(SGD(), P), RING, False),
    "gradient tracking, overlapped": (GradientTracking(SGD(), P), RING, True),
    "exact diffusion": (ExactDiffusion(SGD(), P), RING, False),
    "centralized": (Centralized(SGD()), Averaging(range(N)), False),
}


class Finite:
    """An exchange that fails a test if it is given anything but finite numbers."""

    def __init__(self, inner):
        self.inner = inner
        self.counters = inner.counters

    def start(self, agent, round, row, message):
        assert message is None or bool(message.isfinite().all()), "a neighbour receives it"
        self.inner.start(agent, round, row, message)

    def collect(self, round):
        return self.inner.collect(round)

    def inbox(self, agent, round):
        return self.inner.inbox(agent, round)


class Slopes:
    """Gradients of ones; agent 2 has those of ``special`` in local step 3."""

    steps_together = False

    def __init__(self, special):
        self.special = torch.tensor(special)

    def gradients(self, batches):
        for batch in batches:
            hit = batch.rows[0] == 3 and batch.data.agent == 2
            batch.params.grad.copy_(self.special if hit else torch.ones(P))
            yield Stats.zero()


class Saved:
    """A store that saves after every round, and remembers which."""

    def __init__(self):
        self.rounds = []

    def due(self, done):
        return True

    def save(self, done, agents):
        for agent in agents:
            assert bool(agent.params.data.isfinite().all())
        self.rounds.append(done)

    def poll(self):
        pass

    def flush(self):
        pass


def make_run(kind, special, *, lr=0.1, local_steps=1, dtype=torch.float32):
    algorithm, schedule, overlap = KINDS[kind]
    world = LocalWorld(N)

    def new():
        return world.exchange(algorithm.message_size(P), dtype)

    server = isinstance(schedule, Averaging)
    exchange = ServerExchange(new(), new(), all_hear=N) if server else new()
    grad = torch.zeros(P, dtype=dtype)
    sampler = SimpleNamespace(rows=lambda step, size: np.array([step]))
    agents = []
    for i in range(N):
        state = algorithm.init(torch.zeros(P, dtype=dtype))
        params = FlatParams(Layout(("x",), ((P,),), P, dtype), state.x, grad)
        data = SimpleNamespace(agent=i, source_rows=SourceRows(100 * i + np.arange(20)))
        agents.append(Agent(i, params, state, data, sampler, Stats.zero()))
    monitor = SimpleNamespace(
        begin=lambda run: None, observe=lambda *_: None, sync=lambda: None,
        sound=lambda round, run, last: True, working=lambda what: nullcontext(),
    )  # fmt: skip
    return Run(world, Finite(exchange), algorithm, Slopes(special), schedule, agents,
               lambda step: lr, local_steps, 1, overlap, 8, monitor, Saved())  # fmt: skip


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_is_neither_told_nor_saved(kind, bad):
    run = make_run(kind, [0.0, bad, 1.0])
    with pytest.raises(NumericalError) as caught:
        train(run)
    assert run.store.rounds == [1, 2, 3]
    assert caught.value.what == (
        "round 3, local step 0: the gradient of agent 2 has NaN or infinite values, on source "
        "rows 203"
    )
    clips = not run.algorithm.needs.equal_steps
    assert ("optim.clip_norm" in caught.value.remedy) == clips and "intact" in caught.value.remedy


def test_the_local_step_is_named():
    with pytest.raises(NumericalError, match="round 1, local step 1: the gradient of agent 2"):
        train(make_run("dsgd", [math.nan, 0.0, 0.0], local_steps=2))


@pytest.mark.parametrize("kind", KINDS)
def test_large_finite_gradients_pass_though_their_sum_does_not(kind):
    run = make_run(kind, [3e38, 3e38, 3e38], lr=1e-3)
    train(run)
    assert run.store.rounds == list(range(1, 9))


def test_large_finite_parameters_pass_though_their_sum_does_not():
    run = make_run("dsgd", [3e38, 3e38, 3e38], lr=1.0)
    train(run)
    assert run.store.rounds == list(range(1, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_overflows_is_not_saved(kind):
    """In some algorithms it is taken after the exchange: the model is not finite only then."""
    run = make_run(kind, [3e38, 0.0, 0.0], lr=100.0)
    with pytest.raises(NumericalError, match="NaN or infinite parameters after .*round 3"):
        train(run)
    assert run.store.rounds == [1, 2, 3]


def test_the_loop_and_what_it_measures_name_no_algorithm():
    for module in (train_module, divergence, objective, needs):
        text = inspect.getsource(module)
        assert not [kind for kind in ALGORITHMS if f"'{kind}'" in text or f'"{kind}"' in text]


def test_agents_that_rest_are_not_asked():
    run = make_run("dsgd", [1.0, 1.0, 1.0])
    quiet = SimpleNamespace(mixing=lambda t: SimpleNamespace(row=lambda i: RESTING))
    run.schedule = quiet
    train(run)
    assert run.store.rounds == list(range(1, 9))
