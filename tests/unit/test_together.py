"""Many agents of one process, computed together: the bits of every agent computed alone."""

import tracemalloc

import numpy as np
import pytest
import torch
from quadratics import NoStore, Recorder

from decdpo.algorithms.catalogue import ALGORITHMS
from decdpo.build.agents import models_in_rows
from decdpo.codecs.topk import TopK
from decdpo.comm.late.delays import SeededDelays
from decdpo.comm.late.staleness import StaleExchange
from decdpo.comm.local import LocalWorld
from decdpo.data.sampling import EpochSampler
from decdpo.data.shard import PreferenceShard
from decdpo.errors import NumericalError
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.params.optim import SGD, AdamW
from decdpo.params.support import add_at, clear, descend, support, touched
from decdpo.policies.joint import Apart
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Batch, Objective
from decdpo.policies.pooled import LogLinearJointPass, LogLinearJointStep
from decdpo.run import Agent, Run
from decdpo.topology.schedule import make_schedule
from decdpo.train import train

N, P, ROUNDS = 6, 4096, 4
WORDS = "a the of in plain sense reason answer question green blue red wide narrow old new".split()
KINDS = {
    "dsgd": ("dsgd", {}, SGD(), 0),
    "dsgd with momentum": ("dsgd", {}, SGD(momentum=0.5), 0),
    "dsgd, clipped and decayed": ("dsgd", {}, SGD(weight_decay=0.1, max_norm=0.05), 0),
    "dsgd with AdamW": ("dsgd", {}, AdamW(), 0),
    "late messages": ("dsgd", {}, SGD(), 2),
    "gradient tracking": ("gradient_tracking", {}, SGD(), 0),
    "choco": ("choco", {"codec": TopK.of_ratio(P, torch.float32, 0.1), "gamma": 0.1}, SGD(), 0),
    "quasi-global momentum": ("quasi_global_momentum", {}, SGD(), 0),
    "exact diffusion": ("exact_diffusion", {}, SGD(), 0),
}


def shard(agent, *, weighted=False):
    """Return 12 pairs of few words, so that pairs share some; 3 are held out."""
    rng = np.random.default_rng(agent)
    pairs = [("p", *(" ".join(rng.choice(WORDS, 8)) for _ in range(2))) for _ in range(12)]
    columns = {"score_chosen": rng.uniform(1, 2, 12), "score_rejected": rng.uniform(0, 1, 12)}
    if weighted:
        columns["weight"] = rng.integers(1, 4, 12).astype(float)
    return PreferenceShard.from_pairs(pairs, 9, agent=agent, columns=columns)


def models(policy, together, algorithm):
    """Return parameters and states of all agents, as rows of one matrix or each by itself."""
    if together:
        return models_in_rows(policy, algorithm, N)
    return [models_in_rows(policy, algorithm, 1)[0] for _ in range(N)]


def make_run(kind, together, *, local_steps=2, overlap=True):
    """Put a run on hashed text together as ``decdpo.build`` does."""
    name, options, optimizer, max_age = KINDS[kind]
    policy = LogLinear(P)
    algorithm = ALGORITHMS[name](optimizer=optimizer, num_shared=P, **options)
    encoded = [policy.encode(shard(i)) for i in range(N)]
    if together:
        encoded = policy.pool(encoded)
    world = LocalWorld(N)
    exchange = world.exchange(algorithm.message_size(P), torch.float32)
    if algorithm.needs.sends_bytes:
        exchange = world.exchange(algorithm.message_size(P), torch.uint8)
    if max_age:
        exchange = StaleExchange(exchange, SeededDelays(0, max_age), max_age)
    objective = Objective(policy, DPO(0.5))
    agents = [
        Agent(i, params, state, data, EpochSampler(3, i, data.num_train), objective.no_stats())
        for i, data, (params, state) in zip(range(N), encoded, models(policy, together, algorithm))
    ]
    steps = local_steps if not algorithm.needs.equal_steps else 1
    return Run(
        world, exchange, algorithm, objective, make_schedule("ring", "auto", N), agents,
        lambda step: 0.3, steps, 5, overlap, ROUNDS, Recorder(), NoStore(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_matrix_train_to_the_bits_of_agents_apart(kind):
    seen, passes = [], []
    for together in (True, False):
        run, types = make_run(kind, together), set()
        with pytest.MonkeyPatch.context() as patch:
            for name in ("forward_all", "step_all"):
                patch.setattr(LogLinear, name, watched(getattr(LogLinear, name), types))
            train(run)
        passes.append(types)
        counted = [agent.state.optim.steps for agent in run.agents if hasattr(agent.state, "optim")]
        seen.append((run.monitor.path, [agent.stats.values for agent in run.agents], counted))
    plain = kind in ("dsgd", "late messages", "choco")
    # Tracking keeps x beside y in a buffer of its own, and is computed in the general way.
    joint = LogLinearJointStep if plain else LogLinearJointPass
    assert passes[0] == {Apart if kind == "gradient tracking" else joint}
    assert passes[1] == ({type(None), Apart} if plain else {Apart})
    for ours, theirs in zip(*seen):
        assert np.array_equal(ours, theirs)
    assert np.abs(seen[0][0][-1]).max() > 0.01


def watched(method, types):
    """Return ``method``, which notes the types of what it returns."""

    def watching(self, batches):
        found = method(self, batches)
        types.add(type(found))
        return found

    return watching


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_of_one_memory_are_scored_as_each_alone(dtype, weighted):
    policy = LogLinear(P, dtype=dtype)
    objective = Objective(policy, DPO(0.5))
    alone = [policy.encode(shard(i, weighted=weighted)) for i in range(N)]
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((N, P))).to(policy.layout.dtype)
    some = [rng.integers(0, 12, size) for size in (1, 7, 31, 32, 33, 40)]
    grad = torch.zeros_like(x[0])
    together = [
        Batch(FlatParams(policy.layout, x[i], grad), data, rows)
        for i, (data, rows) in enumerate(zip(policy.pool(alone), some))
    ]
    evaluated = objective.evaluations(together, batch_size=9)
    for i, stats in enumerate(objective.gradients(together)):
        params = FlatParams(policy.layout, x[i].clone())
        expected = objective.gradient(params, alone[i], some[i])
        assert np.array_equal(stats.values, expected.values)
        assert torch.equal(grad, params.grad) and grad.any()
        held = objective.evaluate(params, alone[i], some[i], batch_size=9)
        assert np.array_equal(evaluated[i].values, held.values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("some", [range(N), (1, 2, 5), (4, 0)])
@pytest.mark.parametrize("rate", [lambda i: 0.3, lambda i: 0.1 * i])
def test_plain_steps_of_many_are_those_of_each_alone(dtype, some, rate):
    policy = LogLinear(P, dtype=dtype)
    objective = Objective(policy, DPO(0.5))
    alone = [policy.encode(shard(i, weighted=True)) for i in range(N)]
    data = policy.pool(alone)
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.standard_normal((N, P))).to(policy.layout.dtype)
    rows = {i: rng.integers(0, 12, size) for i, size in zip(some, (1, 7, 31, 32, 33, 40))}
    x, expected = start.clone(), start.clone()
    before = x._version
    batches = [Batch(FlatParams(policy.layout, x[i]), data[i], rows[i]) for i in some]
    assert type(policy.step_all([batch[:3] for batch in batches])) is LogLinearJointStep
    found, finite = objective.steps(batches, [rate(i) for i in some])
    for i, stats in zip(some, found):
        params = FlatParams(policy.layout, expected[i])
        assert np.array_equal(stats.values, objective.gradient(params, alone[i], rows[i]).values)
        descend(params.data, params.grad, rate(i))
    assert torch.equal(x, expected) and not torch.equal(x, start) and finite.all()
    assert x._version > before, "who keeps a copy must see that it has changed"


@pytest.mark.parametrize("name, value", [("SPREAD", 0), ("MOST_VALUES", 0)])
def test_batches_with_many_features_are_stepped_one_by_one(monkeypatch, name, value):
    policy = LogLinear(P)
    objective, rows = Objective(policy, DPO(0.5)), np.arange(9)
    data = policy.pool([policy.encode(shard(i)) for i in range(2)])
    ends = []
    for limit in (None, value):
        if limit is not None:
            monkeypatch.setattr(f"decdpo.policies.loglinear.{name}", limit)
        x = torch.zeros(2, P)
        batches = [Batch(FlatParams(policy.layout, x[i]), data[i], rows) for i in range(2)]
        joint = policy.step_all([batch[:3] for batch in batches])
        assert (joint is None) == (limit is not None)
        objective.steps(batches, [0.3, 0.3])
        ends.append(x)
    assert torch.equal(*ends) and ends[0].any()


@pytest.mark.parametrize("together", [True, False])
def test_a_gradient_that_is_not_finite_is_reported_with_its_agent(together):
    run = make_run("dsgd", together, local_steps=1)
    # At x = 0 margins and losses are finite, whatever the features and beta.
    run.objective = Objective(run.objective.policy, DPO(1e3))
    values = run.agents[3].data.differences.values
    values[:] = np.sign(values) * np.float32(1e38)
    with pytest.raises(NumericalError, match="round 0, local step 0: the gradient of agent 3 has"):
        train(run)


def test_batches_that_lie_apart_or_hold_much_are_scored_one_by_one(monkeypatch):
    policy = LogLinear(P)
    data = policy.pool([policy.encode(shard(i)) for i in range(2)])
    rows, x = np.arange(5), torch.zeros(2, P)

    def passed(first, second, of):
        params = [FlatParams(policy.layout, vector) for vector in (first, second)]
        return type(policy.forward_all([(p, d, rows) for p, d in zip(params, of)]))

    assert passed(*x, data) is LogLinearJointPass
    assert passed(x[0], x[1].clone(), data) is Apart
    assert passed(*x, [data[0], policy.encode(shard(1))]) is Apart
    monkeypatch.setattr("decdpo.policies.loglinear.MOST_TOGETHER", 100)
    assert passed(*x, data) is Apart


def test_the_memory_of_scoring_together_does_not_grow_with_the_agents():
    policy = LogLinear(P)
    objective = Objective(policy, DPO(0.5))
    some, peaks = [policy.encode(shard(i)) for i in range(N)], []
    # Of the groups that are scored in turn, two at most are there at a time.
    for agents in (256, 768):
        data = policy.pool([some[i % N] for i in range(agents)])
        x = torch.zeros(agents, P)
        grad = torch.zeros(P)
        batches = [
            Batch(FlatParams(policy.layout, x[i], grad), data[i], np.arange(9))
            for i in range(agents)
        ]
        tracemalloc.start()
        for _ in objective.gradients(batches):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("size", [1000, 4096, 4099])
def test_a_step_where_the_gradient_is_has_the_bits_of_a_whole_one(size):
    rng = np.random.default_rng(size)
    x = torch.from_numpy(rng.standard_normal(size).astype(np.float32))
    whole, grad = x.clone(), torch.zeros(size)
    clear(grad)
    for places in (rng.integers(0, size, 40), rng.integers(0, size, 30)):
        add_at(grad, places, rng.standard_normal(len(places)).astype(np.float32))
    assert len(support(grad)) == 70 and torch.equal(touched(grad), grad[support(grad)])
    descend(x, grad, 0.3)
    whole.add_(grad, alpha=-0.3)
    assert torch.equal(x, whole)
    clear(grad)
    assert not grad.any() and support(grad) is None


def test_a_note_of_where_a_gradient_is_ends_with_the_next_change():
    grad = torch.zeros(64)
    assert support(grad) is None
    clear(grad)
    add_at(grad, np.array([3, 5]), np.ones(2, np.float32))
    assert support(grad).tolist() == [3, 5]
    grad.mul_(2.0)
    assert support(grad) is None and touched(grad) is grad
    clear(grad)
    assert not grad.any()
    add_at(grad, np.arange(9), np.ones(9, np.float32))
    assert support(grad) is None, "as many places as that are no gain"


def test_a_policy_that_knows_nothing_of_notes_may_write_past_torch():
    x, grad = torch.zeros(64), torch.zeros(64)
    for _ in range(2):
        clear(grad)
        grad.numpy()[5] = 2.0
        descend(x, grad, 0.5)
    assert x[5] == -2.0 and x.sum() == -2.0


def test_a_step_of_one_agent_is_no_change_of_the_others_to_autograd():
    """Batches are all scored before the first step, and then the gradients taken in turn."""
    policy = LogLinear(8)
    algorithm = ALGORITHMS["dsgd"](optimizer=SGD(), num_shared=8)
    inputs = [params.data.requires_grad_() for params, _ in models_in_rows(policy, algorithm, 3)]
    losses = [(x * x).sum() for x in inputs]
    for x, loss in zip(inputs, losses):
        (grad,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x.add_(grad, alpha=-0.5).add_(1.0)
    assert all(x.tolist() == [1.0] * 8 for x in inputs)


def test_small_batches_are_scored_and_stepped_on_one_thread(monkeypatch):
    """Torch divides even a few values between its threads, which is slower, and may spin."""
    threads, used = torch.get_num_threads(), []
    logsigmoid = torch.nn.functional.logsigmoid

    def watching(values):
        used.append(torch.get_num_threads())
        return logsigmoid(values)

    monkeypatch.setattr(torch.nn.functional, "logsigmoid", watching)
    try:
        torch.set_num_threads(2)
        run = make_run("dsgd", True, local_steps=1)
        train(run)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    # Encoding, the margins of a round, and the loss.
    assert len(used) >= 2 * N + 3 * ROUNDS and set(used) == {1}
