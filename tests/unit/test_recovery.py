"""Agents are lost while a run trains: what the others do, in one process."""

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decdpo import build
from decdpo.algorithms.gossip.choco import Choco
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.exact_diffusion import ExactDiffusion
from decdpo.algorithms.gossip.gradient_tracking import GradientTracking
from decdpo.algorithms.gossip.push_sum import PushSum
from decdpo.algorithms.server.fedavg import FedAvg
from decdpo.checkpoint.store import CheckpointStore
from decdpo.codecs.identity import Identity
from decdpo.codecs.topk import TopK
from decdpo.comm.history import MEAN, Change, History
from decdpo.comm.local import LocalWorld
from decdpo.comm.replayed import ReplayedWorld
from decdpo.comm.server import ServerExchange
from decdpo.config import parse
from decdpo.metrics.evaluation import mean_of
from decdpo.params.flat import FlatParams, Layout
from decdpo.params.optim import SGD
from decdpo.policies.stats import Stats
from decdpo.recovery import Recovery
from decdpo.run import Agent, Run
from decdpo.session.adoption import FAILED, Adoption, neighbours, saved_state
from decdpo.session.measuring import newcomers
from decdpo.session.replay import Kept, Readoption
from decdpo.topology.living import left_of
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import make_schedule, round_weights
from decdpo.train import train

N, P, ROUNDS, LR = 6, 4, 30, 0.1
LOSSES = [Change(5, True, (2,)), Change(5, True, (4,)), Change(12, False, (0,))]


class Quadratics:
    """f_i(x) = 1/2 |x - c_i|^2; keeps how many gradients each agent took."""

    steps_together = False

    def __init__(self):
        self.c = np.random.default_rng(0).normal(size=(N, P))
        self.taken = [0] * N

    def gradients(self, batches):
        for params, agent, *_ in batches:
            self.taken[agent] += 1
            params.grad.copy_(params.data - torch.from_numpy(self.c[agent]))
            yield Stats.zero()


class Recorder:
    """Keeps all models, (agents, P) after every round, and all events."""

    def __init__(self):
        self.path, self.events, self.seen = [], [], lambda run: None

    def begin(self, run):
        pass

    def observe(self, round, run, seconds):
        self.path.append({a.id: a.params.data.numpy().copy() for a in run.agents})
        self.seen(run)

    def changed(self, event, run):
        self.events.append(event)

    def working(self, what):
        return nullcontext()


class NoStore:
    def due(self, done):
        return False

    def poll(self):
        pass

    def flush(self):
        pass


def make_run(algorithm, graph="ring", losses=LOSSES, *, rule="auto", overlap=False, steps=1):
    problem, history = Quadratics(), History(range(N), losses)
    world = ReplayedWorld(history)
    layout = Layout(("x",), ((P,),), P, torch.float64)
    bytes_ = algorithm.needs.sends_bytes
    exchange = world.exchange(algorithm.message_size(P), torch.uint8 if bytes_ else torch.float64)
    grad, agents = torch.zeros(P, dtype=torch.float64), []
    sampler = SimpleNamespace(rows=lambda step, size: np.array([step]))
    for i in range(N):
        state = algorithm.init(torch.zeros(P, dtype=torch.float64))
        agents.append(Agent(i, FlatParams(layout, state.x, grad), state, i, sampler, Stats.zero()))
    schedule = make_schedule(graph, rule, N, push_sum=rule == "push")
    recovery = Recovery(
        schedule, History(range(N)), note=lambda event, writes: None, say=lambda line: None
    )
    return Run(world, exchange, algorithm, problem, schedule, agents, lambda step: LR, steps, 1,
               overlap, ROUNDS, Recorder(), NoStore(), recovery=recovery)  # fmt: skip


def members(t):
    return History(range(N), LOSSES).members(t)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("graph", ["ring", "star", "one_peer_exponential"])
def test_dsgd_mixes_the_round_of_a_loss_among_those_that_are_left(graph, overlap):
    run = make_run(Dsgd(SGD(), P), graph, overlap=overlap, steps=2)
    train(run)
    full, problem, X = make_schedule(graph, "auto", N), Quadratics(), np.zeros((N, P))
    for t in range(ROUNDS):
        left = members(t)
        schedule = full if len(left) == N else left_of(full, left)
        W = round_weights(schedule.mixing(t), N).toarray()
        sent, stepped = X, X
        for _ in range(2):
            stepped = stepped - LR * (stepped - problem.c)
        X = W @ sent + stepped - sent if overlap else W @ stepped
        assert sorted(run.monitor.path[t]) == list(left)
        for agent, x in run.monitor.path[t].items():
            np.testing.assert_allclose(x, X[agent], atol=1e-12)
    # Agents lost midway took the steps of their last round; nobody repeated one.
    assert run.objective.taken == [24, 60, 12, 60, 12, 60]
    assert [e["lost"] for e in run.monitor.events] == [[2, 4], [0]]
    assert [e["round"] for e in run.monitor.events] == [6, 13]
    assert run.monitor.events[0]["gap"] == pytest.approx(1 - left_of(full, members(5)).rho)


def least(agents):
    """The minimum of the mean objective of ``agents``."""
    return Quadratics().c[list(agents)].mean(axis=0)


@pytest.mark.parametrize("overlap", [True, False])
def test_tracking_tracks_the_gradients_of_those_that_are_left(overlap):
    run = make_run(GradientTracking(SGD(), P), overlap=overlap)
    checked = []

    def seen(run):
        y = sum(a.state.y for a in run.agents)
        g = sum(a.state.grad for a in run.agents)
        torch.testing.assert_close(y, g, rtol=0, atol=1e-12)
        checked.append(len(run.agents))

    run.monitor.seen = seen
    run.num_rounds = 300
    train(run)
    assert set(checked) == {6, 4, 3}
    for x in run.monitor.path[-1].values():
        np.testing.assert_allclose(x, least(members(99)), atol=1e-8)


def test_exact_diffusion_finds_the_optimum_of_those_that_are_left():
    run = make_run(ExactDiffusion(SGD(), P))
    run.monitor.seen = lambda run: torch.testing.assert_close(
        sum(a.state.drift for a in run.agents), torch.zeros(P).double(), rtol=0, atol=1e-12
    )
    run.num_rounds = 400
    train(run)
    for x in run.monitor.path[-1].values():
        np.testing.assert_allclose(x, least(members(99)), atol=1e-8)


@pytest.mark.parametrize("codec", [Identity(P, torch.float64), TopK(P, torch.float64, 2)])
def test_choco_agrees_on_one_public_copy_again(codec):
    run = make_run(Choco(SGD(), P, codec, 0.4))
    means, publics = [], []

    def seen(run):
        means.append(sum(a.params.data for a in run.agents) / len(run.agents))
        publics.append([a.state.public.clone() for a in run.agents])

    run.monitor.seen = seen
    train(run)
    for public in publics[5]:
        torch.testing.assert_close(public, means[5], rtol=0, atol=1e-12)
    problem = Quadratics()
    for t in range(6, ROUNDS):
        if members(t) == members(t - 1):
            # The mean moves by the gradients alone.
            step = LR * (means[t - 1].numpy() - problem.c[list(members(t))].mean(axis=0))
            np.testing.assert_allclose(means[t], means[t - 1].numpy() - step, atol=1e-12)
    assert {a.state.round for a in run.agents} == {ROUNDS}


@pytest.mark.parametrize("rule", ["push", "auto"])
def test_push_sum_stays_a_weighted_mean(rule):
    run = make_run(PushSum(SGD(), P), "exponential", rule=rule)
    run.lr = lambda step: LR if step < 15 else 0.0
    weights = []
    run.monitor.seen = lambda run: weights.append(sum(a.state.weight for a in run.agents))
    run.num_rounds = 300
    train(run)
    assert weights[4] == pytest.approx(6) and min(weights) > 0
    assert np.ptp(weights[12:]) < 1e-9, "no mass is lost where no agent is"
    ends = np.stack(list(run.monitor.path[-1].values()))
    np.testing.assert_allclose(ends, np.broadcast_to(ends[0], ends.shape), atol=1e-9)
    before = np.stack(list(run.monitor.path[14].values()))
    assert (ends[0] >= before.min(axis=0) - 1e-12).all()
    assert (ends[0] <= before.max(axis=0) + 1e-12).all()


@pytest.mark.parametrize("participants", [6, 3])
def test_fedavg_loses_participants_and_its_server_moves(participants):
    algorithm = FedAvg(SGD(), P)
    run = make_run(algorithm, losses=[Change(5, True, (2,)), Change(5, True, (0,))])
    schedule = Participation(N, participants, seed=2)
    run.schedule, run.recovery.full = schedule, schedule
    exchanges = [run.world.exchange(P, torch.float64) for _ in range(2)]
    run.exchange = ServerExchange(*exchanges, all_hear=N)
    train(run)
    x, c = np.zeros(P), Quadratics().c
    for t in range(ROUNDS):
        left = schedule if t < 5 else left_of(schedule, (1, 3, 4, 5))
        chosen = left.mixing(t).row(1).sources
        if t == 5:
            # The others took no steps in the round that had begun.
            chosen = [i for i in schedule.mixing(t).row(1).sources if i not in (0, 2)]
        x = np.mean([x - LR * (x - c[i]) for i in chosen], axis=0) if len(chosen) else x
        for model in run.monitor.path[t].values():
            np.testing.assert_allclose(model, x, atol=1e-12)
    assert sorted(run.monitor.path[-1]) == [1, 3, 4, 5]


def test_history_travels_as_json():
    history = History(range(N), LOSSES)
    again = History.from_json(range(N), history.to_json())
    assert again.changes == history.changes and again.now == (1, 3, 5)
    assert history.members(4) == tuple(range(6)) and history.members(5) == (0, 1, 3, 5)
    assert History.from_json(range(3), None).now == (0, 1, 2)


class Again:
    """Adopts the agents of ``joined`` by round, at the mean of their neighbours' models."""

    def __init__(self, problem_agents, joined):
        self.all, self.joined, self.made = problem_agents, joined, {}

    def __call__(self, run, absent, t):
        found = [agent for agent in self.joined.get(t, ()) if agent in absent]
        self.made = {}
        for agent in found:
            made = self.made[agent] = self.all[agent]
            near = neighbours(run, agent, t)
            fresh = run.algorithm.init(mean_of(run.world, run.agents, near))
            for name in vars(fresh):
                value = getattr(made.state, name)
                if isinstance(value, torch.Tensor):
                    value.copy_(getattr(fresh, name))
        return {agent: (0, MEAN) for agent in found}


@pytest.mark.parametrize("algorithm", [Dsgd, GradientTracking, ExactDiffusion, PushSum])
def test_an_adopted_agent_begins_at_the_mean_of_its_neighbours_and_takes_part(algorithm):
    run = make_run(algorithm(SGD(), P), losses=[Change(5, True, (2, 4))])
    run.recovery._adopt = again = Again(list(run.agents), {8: [2], 9: [4]})
    seen = []
    run.monitor.seen = lambda run: seen.append(
        {a.id: a.params.data.numpy().copy() for a in run.agents}
    )
    run.num_rounds = 400
    train(run)
    assert [sorted(models) for models in (seen[4], seen[5], seen[8], seen[9])] == [
        [0, 1, 2, 3, 4, 5], [0, 1, 3, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]
    ]  # fmt: skip
    assert run.recovery.history.changes == [
        Change(5, True, (2, 4)),
        Change(8, False, (), {"2": MEAN}),
        Change(9, False, (), {"4": MEAN}),
    ]
    assert run.monitor.events[-1]["adopted"] == {"4": {"process": 0, "begun": MEAN}}
    assert run.schedule.mixing(20) is run.recovery.full.mixing(20) and again.made
    if algorithm in (GradientTracking, ExactDiffusion):
        for x in seen[-1].values():
            np.testing.assert_allclose(x, least(range(N)), atol=1e-8)


@dataclass
class Saved:
    """What a checkpoint holds of an agent."""

    x: torch.Tensor
    moment: torch.Tensor


def test_an_agent_is_adopted_from_the_newest_whole_checkpoint_or_left_alone(tmp_path, capsys):
    store = CheckpointStore(tmp_path, world=LocalWorld(2), identity={}, run="r")
    fresh = torch.zeros(5000)
    for round in (1, 2):
        store.save(round, {a: Saved(fresh + a, fresh + round) for a in range(2)})
    store.flush()
    state = Saved(fresh.clone(), fresh.clone())
    assert saved_state(tmp_path, "r", 1, state) == 2 and state.moment[0] == 2
    assert not capsys.readouterr().err

    for round, wanted in ((2, 1), (1, MEAN)):
        # The model of agent 1 is whole; its moment, which is read after that, is not.
        path = tmp_path / f"round_{round:06d}" / "part_0000.h5"
        content, moment = path.read_bytes(), np.full(5000, round, "<f4").tobytes()
        last = content.rindex(moment)
        path.write_bytes(content[:last] + b"\x01" + content[last + 1 :])
        state = Saved(fresh.clone(), fresh.clone())
        assert saved_state(tmp_path, "r", 1, state) == wanted
        said = capsys.readouterr().err
        assert f"agent 1 is not adopted from {path.parent}" in said and "checksum" in said
    assert not state.x.any() and not state.moment.any()


def test_an_agent_whose_new_process_is_lost_too_is_tried_again():
    class Answers(Adoption):
        """Has agents 2 and 3 read here and by process 1, agent 4 by nobody."""

        def _assign(self, world, agents):
            return {agent: rank for agent, rank in ((2, 1), (3, 0)) if agent in agents}

        def _make(self, run, agent):
            return FAILED

    world = LocalWorld(1)
    adopt = Answers(SimpleNamespace(), lambda line: None)
    # Process 1 is lost before it can answer.
    assert adopt(SimpleNamespace(world=world), (2, 3, 4), 0) == {}
    assert adopt._given_up == {3, 4}


def test_a_server_of_agents_that_were_left_by_an_earlier_start_averages():
    config, left = parse('[algorithm]\nkind = "fedavg"'), (2, 5, 6)
    layout = Layout(("x",), ((P,),), P, torch.float64)
    world = LocalWorld(3, left)
    exchange = build.make_exchange(config, world, FedAvg(SGD(), P), layout, "cpu")
    schedule = left_of(Participation(8, 2, seed=3), left)
    for t in range(4):
        row = schedule.mixing(t).row(2)
        for i in left:
            message = torch.full((P,), float(i)).double() if i in row.sources else None
            exchange.start(i, t, row, message)
        assert exchange.collect(t)
        for i in left:
            (mean,) = exchange.inbox(i, t).settled().messages
            assert mean.source == 2 and mean.body[0] == sum(row.sources) / 2


def test_new_people_are_measured_by_the_agents_that_are_left(monkeypatch):
    index = SimpleNamespace(
        num_agents=5, open=lambda i: i, agents=[SimpleNamespace(name=str(i)) for i in range(5)]
    )
    monkeypatch.setattr(newcomers, "ShardIndex", SimpleNamespace(load=lambda folder: index))
    monkeypatch.setattr(newcomers, "_require_new", lambda *_: None)
    sums = {"sums": np.ones(1)}
    monkeypatch.setattr(newcomers, "_measured", lambda *_: {
        "squared_weight": 1.0, newcomers.BEFORE: {**sums}, newcomers.AFTER: {**sums},
    })  # fmt: skip
    monkeypatch.setattr(newcomers, "measured", lambda stats, squares: {"pairs": stats.values[0]})
    monkeypatch.setattr(newcomers, "Stats", lambda sums, names: SimpleNamespace(values=sums))
    policy = SimpleNamespace(encode=lambda shard: SimpleNamespace(num_heldout=1))
    experiment = SimpleNamespace(
        world=LocalWorld(2, (3, 6)), agents=[SimpleNamespace(id=3), SimpleNamespace(id=6)],
        objective=SimpleNamespace(policy=policy, names=()),
    )  # fmt: skip
    rows, total = newcomers.measure_newcomers(experiment, ["people"], None, 1, 1, 0.1)
    assert [row["person"] for row in rows] == [0, 1, 2, 3, 4] and total["pairs"] == 5


def test_agents_that_were_lost_before_the_first_round_are_adopted_again():
    lost = Change(0, False, (1, 2))
    history = History(range(N), [lost, Change(0, False, (), {"1": 0, "2": 0})])
    run = make_run(Dsgd(SGD(), P), losses=history.changes)
    # All were there when the start was saved.
    kept = Kept(history)
    kept.keep(0, run.agents)

    def make(agent):
        others = make_run(Dsgd(SGD(), P), losses=[]).agents
        return next(a for a in others if a.id == agent)

    run.recovery = Recovery(
        run.recovery.full, History(range(N)), note=lambda event, writes: None,
        say=lambda line: None, adopt=Readoption(history, make, kept),
    )  # fmt: skip
    run.world.begin()
    assert run.world.members.agents == (0, 3, 4, 5)
    train(run)
    assert [a.id for a in run.agents] == list(range(N))
    assert run.recovery.history.changes == history.changes
    whole = make_run(Dsgd(SGD(), P), losses=[])
    train(whole)
    assert all(torch.equal(a.state.x, b.state.x) for a, b in zip(run.agents, whole.agents))
