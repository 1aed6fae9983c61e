"""A policy with personal parameters goes through training, measuring, export and resume."""

import json
from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import torch

from decdpo.comm.local import LocalExchange
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.loglinear import LogLinear, LogLinearPass

FEATURES = 256


@dataclass
class PersonalPass:
    """The pass at theta + own_i: both parts have its gradient."""

    inner: LogLinearPass
    grad: torch.Tensor

    @property
    def scores(self):
        return self.inner.scores

    def backward(self, cotangents):
        self.inner.backward(cotangents)
        for half in self.grad.view(2, -1):
            half += self.inner.params.grad


class Personal(LogLinear):
    """Log-linear with theta_i = shared + own_i; agents are scored one by one."""

    forward_all = None

    def __init__(self, dimension):
        super().__init__(dimension)
        names, shape = ("theta", "own"), (dimension,)
        self.layout = Layout(names, (shape, shape), dimension)

    def initial(self):
        return torch.zeros(self.layout.size)

    def encode(self, shard):
        whole, self.layout = self.layout, Layout(("theta",), ((FEATURES,),), FEATURES)
        data = super().encode(shard)
        self.layout = whole
        return data

    def forward(self, params, data, rows, *, need_grad=True):
        theta, own = params.data.view(2, -1)
        inner = FlatParams(Layout(("theta",), ((FEATURES,),), FEATURES), theta + own)
        return PersonalPass(super().forward(inner, data, rows), params.grad)

    def export(self, x, out):
        np.savez(out, x=x.numpy())
        return out


@pytest.fixture
def personal(monkeypatch, shell, config):
    """Let every run of this test train the policy above; return what messages were made of."""
    monkeypatch.setattr("decdpo.build.agents.make_policy", lambda *_: Personal(FEATURES))
    sizes = []
    whole = LocalExchange.start

    def watched(self, agent, round, row, message):
        sizes.append(None if message is None else message.numel())
        return whole(self, agent, round, row, message)

    monkeypatch.setattr(LocalExchange, "start", watched)
    return sizes


def states(shell, run):
    """Return the (n, 2, P) parameters of a run's last checkpoint, shared and personal."""
    folder = sorted((shell.folder / run / "checkpoints").iterdir())[-1]
    found = []
    for part in sorted(folder.glob("part_*.h5")):
        with h5py.File(part) as opened:
            found += [opened[f"agents/{name}/x"][:] for name in sorted(opened["agents"])]
    return np.stack(found).reshape(len(found), 2, -1)


@pytest.mark.parametrize("kind", ["dsgd", "centralized", "fedavg", "gradient_tracking"])
def test_personal_parts_stay_and_shared_ones_are_mixed(shell, personal, kind):
    shell("train", "run.toml", "--out", "r", "--set", f"algorithm.kind={kind}",
          "--set", "optim.lr=0.5")  # fmt: skip
    # Gradient tracking sends its estimate of the gradient beside the parameters.
    vectors = 2 if kind == "gradient_tracking" else 1
    assert set(personal) - {None} == {vectors * FEATURES}
    last = states(shell, "r")
    shared, own = last[:, 0], last[:, 1]
    spread = np.linalg.norm(shared - shared.mean(axis=0))
    assert np.linalg.norm(own - own.mean(axis=0)) > 2 * spread
    assert all(np.abs(one).max() > 0 for one in own)
    records = shell.metrics("r")
    assert records[-1]["loss"] < np.log(2)


def test_every_measurement_keeps_the_personal_parts(shell, shards, personal):
    from decdpo.data.index import ShardIndex
    from decdpo.losses.dpo import DPO
    from decdpo.policies.objective import Objective

    shell("train", "run.toml", "--out", "r", "--set", "optim.lr=0.5")
    found = json.loads(shell("evaluate", "r", "--json"))
    last, index, policy = states(shell, "r"), ShardIndex.load(shards), Personal(FEATURES)
    losses, count = [], []
    for agent, (_, own) in enumerate(last):
        data = policy.encode(index.open(agent))
        both = np.concatenate((last[:, 0].mean(axis=0, dtype=np.float64), own)).astype(np.float32)
        params = FlatParams(policy.layout, torch.from_numpy(both))
        means = Objective(policy, DPO()).evaluate(params, data, data.heldout_rows).means()
        assert found["agents"][agent]["average"]["loss"] == pytest.approx(means["loss"], rel=1e-6)
        losses.append(means["loss"])
        count.append(data.num_heldout)
    expected = np.average(losses, weights=count)
    assert shell.metrics("r")[-1]["heldout/average/loss"] == pytest.approx(expected, rel=1e-6)
    assert found["average"]["loss"] == pytest.approx(expected, rel=1e-6)


def test_export_asks_whose_personal_part(shell, personal):
    shell("train", "run.toml", "--out", "r", "--set", "optim.lr=0.5")
    shell("export", "r", "--out", "m", status=2)
    assert "personal parameters" in shell.said and "--agent" in shell.said
    shell("export", "r", "--out", "m", "--agent", "3")
    exported = np.load(shell.folder / "m" / "policy.npz")["x"]
    assert (exported == states(shell, "r")[3].reshape(-1)).all()
    shell("theory", "r", status=2)
    assert "personal parameters" in shell.said


def test_a_run_with_personal_parts_resumes_to_the_same_bits(shell, personal):
    shell("train", "run.toml", "--out", "whole")
    shell("train", "run.toml", "--out", "half", "--set", "run.rounds=4")
    shell("resume", "half", "--set", "run.rounds=12")
    assert shell.digests("half") == shell.digests("whole")
    assert shell.metrics("half") == shell.metrics("whole")


def test_clipping_by_personal_gradients_would_part_a_centralized_run(shell, personal):
    shell("train", "run.toml", "--out", "r", "--set", "algorithm.kind=centralized",
          "--set", "optim.clip_norm=1.0", status=2)  # fmt: skip
    assert "personal parameters" in shell.said and "clip_norm" in shell.said
