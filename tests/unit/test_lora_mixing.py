"""Mixing adapters: the rules in matrix form, what is missed, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from adapted import shard_users, short_rows
from small_models import write_model

from decdpo import build
from decdpo.comm.local import LocalWorld
from decdpo.config import parse
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError
from decdpo.metrics.interference import Interference, relative
from decdpo.params.factors import Factors, Products, interference, truncated
from decdpo.policies.lm.names import MIX_RULES
from decdpo.train import train

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")

AGENTS, ROUNDS, STEPS, LR = 4, 3, 2, 0.5


def factors(rank=3, inputs=17, outputs=11, begin=0):
    edge = begin + rank * inputs
    return Factors(
        slice(begin, edge), slice(edge, edge + outputs * rank), rank, inputs, outputs
    )  # fmt: skip


def near(count, size, distance, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=drawn)
    return [base + distance * torch.randn(size, generator=drawn) for _ in range(count)]


def product(vector, where):
    a, b = where.of(vector.double())
    return b @ a


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.4, 0.3, 0.2, 0.1]])
@pytest.mark.parametrize("shape", [(3, 17, 11), (5, 6, 30), (4, 7, 4)])
def test_interference_is_the_sum_over_pairs_and_the_floor_that_of_singular_values(weights, shape):
    where = factors(*shape, begin=2)
    vectors = near(len(weights), where.b.stop + 5, 0.1)
    pairs = sum(
        wj * wk * (where.of(x.double())[1] - where.of(y.double())[1])
        @ (where.of(x.double())[0] - where.of(y.double())[0])
        for wj, x in zip(weights, vectors)
        for wk, y in zip(weights, vectors)
    )  # fmt: skip
    mixed = sum(w * product(v, where) for w, v in zip(weights, vectors))
    mean = sum(w * v.double() for w, v in zip(weights, vectors))
    torch.testing.assert_close(pairs / 2, mixed - product(mean, where))
    missed, floor, norm = interference(weights, vectors, where)
    values = torch.linalg.svdvals(mixed)
    assert missed == pytest.approx(float(pairs.norm()) / 2, rel=1e-10)
    assert floor == pytest.approx(float(values[where.rank :].norm()), rel=1e-7, abs=1e-12)
    assert norm == pytest.approx(float(mixed.norm()), rel=1e-10)
    # No product of rank r does better than the floor, mixed factors neither.
    assert missed >= floor - 1e-12


def test_interference_is_of_second_order_and_none_where_a_factor_is_common():
    where = factors()
    far, close = (interference([0.5, 0.5], near(2, where.b.stop, d), where) for d in (0.1, 0.01))
    assert far[0] / close[0] == pytest.approx(100, rel=0.2)
    one, two = near(2, where.b.stop, 0.1)
    two[where.a] = one[where.a]
    missed, floor, norm = interference([0.3, 0.7], [one, two], where)
    assert missed < 1e-14 * norm and floor < 1e-12 * norm


def test_no_matrix_of_a_layer_is_formed(monkeypatch):
    where = factors(rank=2, inputs=3000, outputs=2000)
    vectors = near(3, where.b.stop, 0.1)
    largest = 0
    wrapped = torch.Tensor.__matmul__

    def watched(left, right):
        nonlocal largest
        found = wrapped(left, right)
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    interference([0.2, 0.3, 0.5], vectors, where)
    truncated(Products.of([0.2, 0.3, 0.5], vectors, where), 2, where.of(vectors[0])[0])
    assert 0 < largest <= 3000 * 6


def test_a_cut_product_is_the_best_of_its_rank_in_a_common_frame():
    where = factors()
    vectors = near(3, where.b.stop, 0.2)
    weights = [0.5, 0.3, 0.2]
    frame, _ = where.of(near(1, where.b.stop, 0.0, seed=5)[0])
    a, b = truncated(Products.of(weights, vectors, where), 3, frame)
    mixed = sum(w * product(v, where) for w, v in zip(weights, vectors))
    u, s, v = torch.linalg.svd(mixed)
    torch.testing.assert_close(b @ a, (u[:, :3] * s[:3]) @ v[:3])
    scale = float(frame.double().norm()) / 3**0.5
    torch.testing.assert_close(a @ a.t(), scale**2 * torch.eye(3).double(), rtol=0, atol=1e-6)
    # The factors of the same product are the same, whatever factors it came in.
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    other = [v.clone() for v in vectors]
    for vector in other:
        first, second = where.of(vector)
        first.copy_(turn @ first)
        second.copy_(second @ turn.t())
    again = truncated(Products.of(weights, other, where), 3, frame)
    torch.testing.assert_close(again, (a, b), rtol=1e-4, atol=1e-5)


def test_a_product_that_is_nothing_keeps_a_frame_to_learn_in():
    where = factors()
    zero = torch.zeros(where.b.stop)
    frame, _ = where.of(near(1, where.b.stop, 0.0)[0])
    a, b = truncated(Products.of([1.0], [zero], where), 3, frame)
    assert b.norm() == 0 and a.norm() == pytest.approx(float(frame.norm()), rel=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("mixing") / "model")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return shard_users(tmp_path_factory.mktemp("shards"), short_rows())


def settings(folder, shards, mix, *more):
    return parse(
        "",
        [
            f"data.shards={shards}", "data.batch_size=2", f"run.rounds={ROUNDS}",
            "policy.kind=causal_lm", f"policy.model={folder}", "policy.max_length=64",
            "policy.lora.rank=2", f"policy.lora.mix={mix}", "optim.kind=sgd",
            f"optim.lr={LR}", f"algorithm.local_steps={STEPS}", *more,
        ],
    )  # fmt: skip


class Quiet:
    """A monitor and a store that do nothing, but keep what was watched."""

    def __init__(self):
        self.missed = []

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **__: False

    def working(self, _):
        import contextlib

        return contextlib.nullcontext()


def trained(config, tmp_path, watch=None):
    """Train in this process; return the agents' vectors (n, P) and the policy."""
    index = ShardIndex.load(config.data.shards)
    world = LocalWorld(AGENTS)
    ensemble = build.make_ensemble(config, world, index, "cpu")
    policy = ensemble.objective.policy
    exchange = build.make_exchange(config, world, ensemble.algorithm, policy.layout, "cpu")
    out = tmp_path / "run"
    out.mkdir()
    run = build.make_run(config, world, ensemble, exchange, Quiet(), out, 0, "none")
    run.monitor.close()
    run = dataclasses.replace(run, monitor=Quiet(), watch=watch and watch(policy))
    train(run)
    return torch.stack([a.params.data.clone() for a in run.agents]), policy


class Oracle:
    """The same run in matrix form: X (n, P) of all agents, W (n, n), dense products."""

    def __init__(self, config):
        index = ShardIndex.load(config.data.shards)
        self.config, self.ensemble = config, build.make_ensemble(
            config, LocalWorld(AGENTS), index, "cpu"
        )  # fmt: skip
        self.policy = self.ensemble.objective.policy
        self.shared = self.policy.layout.num_shared
        self.sent = []

    def weights(self, t):
        w = torch.zeros(AGENTS, AGENTS, dtype=torch.float64)
        for i in range(AGENTS):
            row = self.ensemble.schedule.mixing(t).row(i)
            w[i, list(row.sources)] = torch.tensor(row.weights, dtype=torch.float64)
            w[i, i] = 1 - sum(row.weights)
        return w

    def local(self, x, t):
        """Return the rows of X after E local steps each."""
        done = []
        for agent, row in zip(self.ensemble.agents, x):
            agent.params.data.copy_(row)
            for h in range(STEPS):
                rows = agent.sampler.rows(t * STEPS + h, self.config.data.batch_size)
                self.ensemble.objective.gradient(agent.params, agent.data, rows)
                agent.params.data.add_(agent.params.grad, alpha=-LR)
            done.append(agent.params.data.double().clone())
        return torch.stack(done)

    def run(self):
        x = torch.stack([a.params.data.double().clone() for a in self.ensemble.agents])
        for t in range(ROUNDS):
            sent, x = x.clone(), self.local(x.float(), t)
            if not self.config.algorithm.overlap:
                sent = x.clone()
            self.sent.append(sent)
            moved = self.weights(t) @ sent - sent
            x[:, : self.shared] += moved[:, : self.shared]
        return x


@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("mix", ["factors", "freeze_a", "core", "share_a"])
def test_a_run_is_its_rule_in_matrix_form(folder, shards, tmp_path, mix, overlap):
    config = settings(folder, shards, mix, f"algorithm.overlap={overlap}")
    found, policy = trained(config, tmp_path)
    oracle = Oracle(config)
    expected = oracle.run()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert (found[0] - found[2]).norm() > 1e-4
    if mix == "share_a":
        own = found[:, policy.layout.num_shared :]
        assert (own[0] - own[2]).norm() > (found[0] - found[2])[: policy.layout.num_shared].norm()


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_a_run_that_mixes_products_cuts_them_back(folder, shards, tmp_path, overlap, monkeypatch):
    config = settings(folder, shards, "svd", f"algorithm.overlap={overlap}")
    found, policy = trained(config, tmp_path)
    oracle = Oracle(config)
    x = torch.stack([a.params.data.double().clone() for a in oracle.ensemble.agents])
    for t in range(ROUNDS):
        sent, x = x.clone(), oracle.local(x.float(), t)
        sent = sent if config.algorithm.overlap else x.clone()
        w, start = oracle.weights(t), policy.initial().double()
        for where in policy.factors:
            all_sent = torch.stack([product(row, where) for row in sent])
            moved = torch.einsum("ij,jdk->idk", w, all_sent) - all_sent
            frame, _ = where.of(start)
            for row, more in zip(x, moved):
                u, s, v = torch.linalg.svd(product(row, where) + more)
                u, s, v = u[:, :2], s[:2], v[:2]
                p, _, q = torch.linalg.svd(frame @ v.t())
                scale = frame.norm() / 2**0.5
                a, b = where.of(row)
                a.copy_(scale * (p @ q @ v))
                b.copy_((u * s) @ (p @ q).t() / scale)
    for mine, theirs in zip(found, x):
        for where in policy.factors:
            expected = product(theirs, where)
            gap = (product(mine, where) - expected).norm()
            assert gap <= 1e-3 * expected.norm() + 1e-7
            torch.testing.assert_close(where.of(mine.double())[0], where.of(theirs)[0],
                                       rtol=2e-2, atol=2e-3)  # fmt: skip


def test_what_is_recorded_is_what_mixing_the_sent_factors_misses(folder, shards, tmp_path):
    config = settings(folder, shards, "factors", "algorithm.overlap=false")
    made = []

    def watch(policy):
        seen = Interference(policy.factors, slice(None), lambda done: done == ROUNDS)
        made.append(seen)
        return seen

    trained(config, tmp_path, watch)
    found = relative(sum(made[0].take(range(AGENTS)).values()))
    oracle = Oracle(config)
    oracle.run()
    sent, w = oracle.sent[-1], oracle.weights(ROUNDS - 1)
    missed = floor = norm = 0.0
    for where in oracle.policy.factors:
        all_sent = torch.stack([product(row, where) for row in sent])
        mixed = torch.einsum("ij,jdk->idk", w, all_sent)
        apart = torch.stack([product(row, where) for row in w @ sent])
        missed += float((mixed - apart).square().sum())
        norm += float(mixed.square().sum())
        floor += float(torch.linalg.svdvals(mixed)[:, where.rank :].square().sum())
    assert found["lora/interference"] == pytest.approx(np.sqrt(missed / norm), rel=1e-2)
    assert found["lora/floor"] == pytest.approx(np.sqrt(floor / norm), rel=1e-2)
    assert found["lora/interference"] > found["lora/floor"] > 0


REFUSED = {
    "gradient_tracking": "tracks gradients by A and B",
    "exact_diffusion": "corrects A and B by earlier ones",
    "quasi_global_momentum": "momentum is of A and B",
    "push_sum": "the product so by its square",
    "choco": "codec adds up differences of A and B",
    "fedavg": "server adds up A and B",
    "outer_momentum": "server adds up A and B",
    "gossip_outer_momentum": "momentum is of A and B",
    "clipped_gossip": "clips differences of A and B",
    "trimmed_mean": "sorts values of A and B",
    "centralized": "server adds up gradients",
    "local": "agents mix nothing",
}


PLAIN = ["optim.kind=sgd", "optim.lr=0.1"]


@pytest.mark.parametrize("kind", REFUSED)
def test_products_are_refused_where_factors_are_remembered(kind):
    words = ["policy.kind=causal_lm", "policy.lora.rank=2", f"algorithm.kind={kind}", *PLAIN]
    parse("", [*words, "policy.lora.mix=factors"])
    with pytest.raises(ConfigError, match=REFUSED[kind]) as caught:
        parse("", [*words, "policy.lora.mix=svd"])
    assert "'dsgd'" in caught.value.remedy


@pytest.mark.parametrize("moments", [["optim.kind=adamw"], [*PLAIN, "optim.momentum=0.9"], []])
def test_products_are_refused_with_moments_of_factors(moments):
    words = ["policy.kind=causal_lm", "policy.lora.rank=2", *moments]
    parse("", words)
    with pytest.raises(ConfigError, match="moments are of A and B"):
        parse("", [*words, "policy.lora.mix=svd"])


@pytest.mark.parametrize("kind", ["dsgd", "outer_momentum", "gossip_outer_momentum", "push_sum"])
def test_adapters_travel_in_fragments_which_are_no_factors(folder, shards, tmp_path, kind):
    config = settings(folder, shards, "factors", f"algorithm.kind={kind}", "algorithm.fragments=4")
    ensemble = build.make_ensemble(config, LocalWorld(AGENTS), ShardIndex.load(shards), "cpu")
    layout = ensemble.objective.policy.layout
    world = LocalWorld(AGENTS)
    exchange = build.make_exchange(config, world, ensemble.algorithm, layout, "cpu")
    run = build.make_run(config, world, ensemble, exchange, Quiet(), tmp_path, 0, "none")
    train(run)
    run.monitor.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["round"] == ROUNDS and np.isfinite(last["loss"])
    assert "lora/interference" not in last


def test_a_rule_without_pairs_of_shared_factors_has_no_interference(folder, shards):
    for mix in MIX_RULES:
        config = settings(folder, shards, mix)
        shard = ShardIndex.load(shards).open(0)
        policy = build.make_policy(config, shard, "cpu")
        assert bool(policy.factors) == (mix in ("factors", "svd"))
