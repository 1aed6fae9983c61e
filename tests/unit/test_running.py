"""A running statistic of the loss, shared beside the parameters, against its dense recursion."""

import numpy as np
import pytest
import torch

from decdpo.algorithms.gossip.choco import Choco
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.gradient_tracking import GradientTracking
from decdpo.algorithms.gossip.push_sum import PushSum
from decdpo.algorithms.local import Local
from decdpo.algorithms.server.centralized import Centralized
from decdpo.algorithms.server.fedavg import FedAvg
from decdpo.algorithms.wrappers.recall import Recalling
from decdpo.algorithms.wrappers.running import TAIL, Running
from decdpo.codecs.topk import TopK
from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.data.shard import PreferenceShard
from decdpo.losses.beta_dpo import BetaDPO
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.params.optim import SGD
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Batch, Objective
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import Averaging, make_schedule, round_weights

N, P, ROUNDS = 6, 5, 12


def walk(algorithm, schedule, dtype=torch.float64, overlap=False):
    """Return X (rounds, n, P) and, if it runs, m (rounds, n), where agent i adds i + t to m."""
    world = LocalWorld(N)
    wire = torch.uint8 if isinstance(getattr(algorithm, "inner", algorithm), Choco) else dtype

    def new():
        return world.exchange(algorithm.message_size(P), wire)

    server = isinstance(schedule, (Averaging, Participation))
    exchange = ServerExchange(new(), new(), all_hear=N) if server else new()
    states = [algorithm.init(torch.zeros(P, dtype=dtype)) for _ in range(N)]
    models, means = [], []

    def start(t):
        for i, state in enumerate(states):
            row = schedule.mixing(t).row(i)
            exchange.start(i, t, row, algorithm.message(state) if row.active else None)

    for t in range(ROUNDS):
        if overlap:
            start(t)
        for i, state in enumerate(states):
            if schedule.mixing(t).row(i).active:
                grad = (state.x - i) * (1 + torch.arange(P, dtype=dtype))
                algorithm.local_step(state, grad, 0.05)
                if hasattr(state, "running"):
                    state.running += i + t
        if not overlap:
            start(t)
        exchange.collect(t)
        for i, state in enumerate(states):
            algorithm.mix(state, exchange.inbox(i, t))
        models.append(torch.stack([state.x.double() for state in states]).numpy())
        means.append([float(state.running) for state in states if hasattr(state, "running")])
    return np.stack(models), np.array(means)


GRAPHS = {
    "dsgd": (Dsgd(SGD(), P), "ring"),
    "gradient tracking": (GradientTracking(SGD(), P), "exponential"),
    "choco": (Choco(SGD(), P, TopK(P, torch.float64, 2), 0.3), "ring"),
    "push-sum": (PushSum(SGD(), P), "star"),
}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_statistic_is_mixed_by_the_weights_of_the_round(name, overlap):
    inner, graph = GRAPHS[name]
    schedule = make_schedule(graph, "auto", N, push_sum=name == "push-sum")
    models, means = walk(Running(inner), schedule, overlap=overlap)
    assert np.array_equal(models, walk(inner, schedule, overlap=overlap)[0])
    W = round_weights(schedule.mixing(0), N).toarray()
    W /= W.sum(axis=1, keepdims=True)
    m = np.zeros(N)
    for t in range(ROUNDS):
        change = np.arange(N) + t
        m = W @ m + change if overlap else W @ (m + change)
        np.testing.assert_allclose(means[t], m, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_server_averages_the_statistic_of_its_participants(dtype):
    schedule = Participation(N, 3, seed=4)
    models, means = walk(Running(FedAvg(SGD(), P)), schedule, dtype)
    assert np.array_equal(models, walk(FedAvg(SGD(), P), schedule, dtype)[0])
    m = 0.0
    for t in range(ROUNDS):
        m = np.mean([m + i + t for i in schedule.mixing(t).row(0).sources])
        np.testing.assert_allclose(means[t], m, rtol=1e-6 if dtype == torch.float32 else 1e-12)


def test_pooled_gradients_pool_the_statistic():
    _, means = walk(Running(Centralized(SGD())), Averaging(range(N)))
    expected = np.cumsum(np.arange(ROUNDS) + (N - 1) / 2)
    np.testing.assert_allclose(means, np.tile(expected[:, None], N), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_no_digit_is_lost_on_the_way(dtype):
    algorithm = Running(Dsgd(SGD(), P))
    state = algorithm.init(torch.zeros(P, dtype=dtype))
    state.running.fill_(np.pi / 7)
    message = algorithm.message(state)
    assert message.dtype == dtype and message.shape == (P + TAIL,)
    terms = message[P:].double()
    assert abs(float(terms.sum()) - np.pi / 7) < (1e-8 if dtype == torch.float16 else 1e-16)


def test_an_agent_alone_sends_nothing_and_an_agent_that_recalls_tells_the_statistic_too():
    assert Running(Local(SGD(), P)).message_size(P) == 0
    late = Recalling(Running(Dsgd(SGD(), P)), P, 2)
    state = late.init(torch.zeros(P))
    assert state.told.shape == (2, P + TAIL)
    state.running.fill_(2.5)
    assert float(late.message(state)[P:].sum()) == 2.5


def test_the_objective_follows_the_statistic_of_the_batch_and_moves_it():
    rng = np.random.default_rng(0)
    features = {f"{side}_features": rng.standard_normal((8, 3)) for side in ("chosen", "rejected")}
    shard = PreferenceShard.from_pairs([("p", "c", "r")] * 8, num_train=8, columns=features)
    policy = LogLinear(3, features="columns", dtype="float64")
    params = FlatParams(policy.layout, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    data, rows = policy.encode(shard), np.array([1, 4, 6])
    loss = BetaDPO(beta=0.3, alpha=0.5, momentum=0.75)
    gaps = policy.forward(params, data, rows).scores
    gap = float((gaps.chosen_ratio - gaps.rejected_ratio).mean())
    running = torch.tensor([0.2], dtype=torch.float64)
    batch = Batch(params, data, rows, running)
    (held,) = Objective(policy, loss).evaluations([batch])
    assert float(running) == 0.2
    (stats,) = Objective(policy, loss).gradients([batch])
    ours = params.grad.clone()
    assert float(running) == pytest.approx(0.75 * 0.2 + 0.25 * gap, rel=1e-14)
    fixed = DPO(beta=0.3 * (1 + 0.5 * (gap - 0.2)))
    theirs = Objective(policy, fixed).gradient(params, data, rows)
    assert stats.means()["loss"] == pytest.approx(theirs.means()["loss"], rel=1e-13)
    assert held.means()["loss"] == stats.means()["loss"]
    np.testing.assert_allclose(ours, params.grad, rtol=1e-12)
