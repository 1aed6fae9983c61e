"""Runs with personal parts: what leaves an agent, resume, measuring, export."""

import json

import h5py
import numpy as np
import pytest
from adapted import ADAPTED, shard_users
from small_models import write_model

from decdpo.comm.local import LocalExchange

CONFIG = ADAPTED + """[policy.personal]
head = "low_rank"
head_rank = 2
reward = true
bottleneck = 4
[loss]
kind = "fedpdpo"
[optim]
kind = "sgd"
lr = 0.1
[log]
every = 1
heldout_pairs = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def people(shell, folder):
    """Write run.toml: four people, two of whom prefer what the others do not."""
    rows = [
        {
            "prompt": f"Q{i} ",
            "chosen": f"{'yes' if i % 4 < 2 else 'no'} {i % 5}",
            "rejected": f"{'no' if i % 4 < 2 else 'yes'} {i % 3}",
            "user": i % 4,
        }
        for i in range(32)
    ]
    shards = shard_users(shell.folder, rows, holdout=0.25)
    return shell.write("run.toml", CONFIG.format(shards=shards, model=folder))


@pytest.fixture
def sent(monkeypatch):
    """Return the messages that agents send: (agent, round, values)."""
    messages = []
    whole = LocalExchange.start

    def watched(self, agent, round, row, message):
        if message is not None:
            messages.append((agent, round, message.detach().clone().numpy()))
        return whole(self, agent, round, row, message)

    monkeypatch.setattr(LocalExchange, "start", watched)
    return messages


def vectors(shell, run):
    folder = sorted((shell.folder / run / "checkpoints").iterdir())[-1]
    with h5py.File(folder / "part_0000.h5") as opened:
        return np.stack([opened[f"agents/{name}/x"][:] for name in sorted(opened["agents"])])


@pytest.mark.parametrize("kind", ["dsgd", "fedavg", "centralized"])
def test_nothing_but_adapters_leaves_an_agent(shell, people, folder, sent, kind):
    from decdpo.policies.causal_lm import CausalLM
    from decdpo.policies.lm.adapters.layers import LoraOptions

    shared = CausalLM(folder, max_length=64, lora=LoraOptions(2, 4.0)).layout.size
    shell("train", "run.toml", "--out", "r", "--set", f"algorithm.kind={kind}")
    assert sent and {len(message) for _, _, message in sent} == {shared}
    last = vectors(shell, "r")
    # Personal values are in no message, not even by chance.
    personal = {value for value in last[:, shared:].ravel().tolist() if value}
    assert personal and not personal & {v for _, _, m in sent for v in m.tolist()}
    own = last[:, shared:]
    assert all(np.linalg.norm(own[i] - own[j]) > 0 for i in range(4) for j in range(i))
    record = shell.metrics("r")[-1]
    names = ["rewards", "explicit", "combined"]
    for name in names:
        assert {f"{name}/margins", f"{name}/accuracies"} <= record.keys()
    assert len(record["heldout/combined/accuracies_by_agent"]) == 4
    assert record["heldout/average/combined/accuracies"] is not None
    assert record["loss"] < shell.metrics("r")[0]["loss"]


def test_a_stopped_run_goes_on_to_the_same_bits(shell, people):
    shell("train", "run.toml", "--out", "whole")
    shell("train", "run.toml", "--out", "half", "--set", "run.rounds=2")
    shell("resume", "half", "--set", "run.rounds=4")
    assert shell.digests("half") == shell.digests("whole")
    assert shell.metrics("half") == shell.metrics("whole")
    shell("resume", "half", "--set", "policy.personal.activation=tanh", status=3)
    assert "policy.personal.activation: saved gelu" in shell.said


def test_evaluate_tells_the_three_accuracies(shell, people):
    shell("train", "run.toml", "--out", "r")
    found = json.loads(shell("evaluate", "r", "--json"))
    record = shell.metrics("r")[-1]
    for row, combined in zip(found["agents"], record["heldout/combined/accuracies_by_agent"]):
        assert row["own"]["combined"]["accuracy"] == pytest.approx(combined)
        assert {"accuracy", "accuracy_se", "margin"} == row["own"]["explicit"].keys()
    assert "combined" in shell("evaluate", "r")


@pytest.fixture
def newcomers(shell):
    """Make shards of two people who were not in the run."""
    rows = [
        {
            "prompt": f"Q{i} ",
            "chosen": "yes" if i % 2 else "no",
            "rejected": "no" if i % 2 else "yes",
            "user": f"new{i % 2}",
        }
        for i in range(40)
    ]
    return shard_users(shell.folder, rows, "new", holdout=0.4)


def adapted(shell, pairs):
    options = ["--data", "new", "--adapt-pairs", pairs, "--adapt-steps", 12, "--adapt-lr", 0.03]
    return json.loads(shell("evaluate", "r", *options, "--json"))


def test_new_people_adapt_their_own_parts_alone(shell, people, newcomers, monkeypatch):
    import decdpo.session.measuring.newcomers as adapting

    shell("train", "run.toml", "--out", "r")
    kept = []
    whole = adapting.adapt

    def watched(objective, optimizer, model, *rest, **more):
        before = model.data.clone()
        whole(objective, optimizer, model, *rest, **more)
        kept.append((before, model.data.clone(), model.layout.num_shared))

    monkeypatch.setattr(adapting, "adapt", watched)
    found = adapted(shell, 8)
    mean = vectors(shell, "r").mean(axis=0, dtype=np.float64)
    for before, after, shared in kept:
        np.testing.assert_array_equal(before[:shared], mean[:shared].astype(np.float32))
        assert (before[:shared] == after[:shared]).all() and (before != after).any()
    assert [row["name"] for row in found["people"]] == ["new0", "new1"]
    assert all(row["adapted_on"] == 8 and row["pairs"] == 8 for row in found["people"])
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["after"]["combined"]["accuracy"] > found["before"]["combined"]["accuracy"]
    none = adapted(shell, 0)
    assert none["before"] == none["after"] == found["before"]
    table = shell("evaluate", "r", "--data", "new", "--adapt-pairs", 2, "--adapt-steps", 1)
    assert "not adapted" in table and "1 new1" in table
    for words, said in (
        (["--adapt-pairs", 4], "--data"),
        (["--adapt-pairs", -1, "--data", "new"], "--adapt-pairs -1"),
        (["--adapt-pairs", 1, "--adapt-lr", 0, "--data", "new"], "--adapt-lr 0"),
        (["--adapt-pairs", 4, "--data", "users"], "trained on agent_0000.h5"),
    ):
        shell("evaluate", "r", *words, status=2)
        assert said in shell.said


def test_a_run_without_personal_parts_does_not_adapt(shell, people, newcomers):
    toml = people.read_text()
    first, last = toml.index("[policy.personal]"), toml.index("[optim]")
    shell.write("bare.toml", toml[:first] + toml[last:])
    shell("train", "bare.toml", "--out", "s")
    shell("evaluate", "s", "--adapt-pairs", 4, "--data", "new", status=2)
    assert "[policy.personal]" in shell.said


def test_a_person_is_exported_with_its_own_parts(shell, people):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    shell("train", "run.toml", "--out", "r")
    shell("export", "r", "--out", "m", status=2)
    assert "--agent" in shell.said
    shell("export", "r", "--agent", "1", "--out", "m")
    with safetensors.safe_open(shell.folder / "m" / "personal.safetensors", "numpy") as kept:
        assert kept.metadata()["head"] == "low_rank" and kept.metadata()["reward"] == "true"
        values = np.concatenate([kept.get_tensor(n).ravel() for n in _in_order(kept.keys())])
    last = vectors(shell, "r")[1]
    np.testing.assert_array_equal(values, last[len(last) - len(values) :])


def _in_order(names):
    order = ["down", "up", "head", "head_in", "head_out", "reward"]
    return sorted(names, key=order.index)
