"""The tabular policy against the definition, autograd, and the one-hot trajectory policy."""

import numpy as np
import pytest
import torch

from decdpo.data.shard import PreferenceShard
from decdpo.data.synthetic import Trajectories
from decdpo.errors import PolicyError
from decdpo.losses.balanced import SymmetricNbDPO
from decdpo.params.flat import FlatParams
from decdpo.policies.objective import Objective, check_start
from decdpo.policies.tabular import Tabular
from decdpo.policies.trajectory import Trajectory

S, A = 4, 3
SHARD = Trajectories(agents=1, pairs=25, states=S, actions=A, horizon=5).shard(0)


def at(policy, seed=1):
    x = np.random.default_rng(seed).standard_normal(policy.layout.size)
    return FlatParams(policy.layout, torch.from_numpy(x).to(policy.layout.dtype))


def test_a_table_is_the_log_linear_policy_of_one_hot_features():
    table = Tabular(S, A, dtype="float64")
    one_hot = Trajectory(np.eye(S * A).reshape(S, A, S * A), "float64")
    mine, other = at(table), at(one_hot)
    grads = []
    for policy, params in ((table, mine), (one_hot, other)):
        objective = Objective(policy, SymmetricNbDPO(beta=0.7))
        stats = objective.gradient(params, policy.encode(SHARD), np.arange(25))
        grads.append((params.grad.numpy(), stats.values))
    assert grads[0][0] == pytest.approx(grads[1][0], abs=1e-14)
    assert grads[0][1] == pytest.approx(grads[1][1], rel=1e-11)


@pytest.mark.parametrize("hidden", [0, 6])
def test_the_gradient_is_that_of_autograd_through_the_definition(hidden):
    policy = Tabular(S, A, hidden, "float64")
    params, rows = at(policy), np.array([3, 3, 20])
    forward = policy.forward(params, policy.encode(SHARD), rows)
    d_chosen, d_rejected = torch.randn(2, 3, dtype=torch.float64)
    forward.backward({"chosen": d_chosen, "rejected": d_rejected})

    def total(x):
        table = policy.log_table(x)
        value = torch.zeros((), dtype=x.dtype)
        for pair, dw, dl in zip(SHARD.pairs(rows), d_chosen, d_rejected):
            for text, slope in ((pair.chosen, dw), (pair.rejected, dl)):
                steps = [tuple(map(int, step.split(":"))) for step in text.split()]
                value = value + slope * sum(table[step] for step in steps)
        return value

    expected = torch.autograd.functional.jacobian(total, params.data)
    assert params.grad.numpy() == pytest.approx(expected.numpy(), rel=1e-10, abs=1e-12)


def test_a_network_is_what_it_says():
    policy = Tabular(S, A, 5, "float64")
    x = at(policy).data
    e, b, v, c = np.split(x.numpy(), np.cumsum([S * 5, 5, 5 * A]))
    logits = np.tanh(e.reshape(S, 5) + b) @ v.reshape(5, A) + c
    table = policy.log_table(x).exp().numpy()
    assert table.sum(axis=1) == pytest.approx(np.ones(S))
    ratio = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert table == pytest.approx(ratio / ratio.sum(axis=1, keepdims=True), rel=1e-12)
    assert (Tabular(S, A, 5, seed=1).initial() != Tabular(S, A, 5, seed=2).initial()).any()


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_begins_at_the_reference(hidden, dtype):
    policy = Tabular(S, A, hidden, dtype)
    check_start(policy, policy.encode(SHARD), batch_size=4, batches=7)
    if not hidden:
        assert policy.log_table(policy.initial()).exp().numpy() == pytest.approx(1 / A)


def test_it_learns_a_preference_of_single_steps():
    shard = PreferenceShard.from_pairs([(str(s), f"{s}:{s % A}", f"{s}:{(s + 1) % A}")
                                        for s in range(S)] * 5)
    policy = Tabular(S, A)
    objective, data = Objective(policy, SymmetricNbDPO(beta=1.0)), policy.encode(shard)
    params = FlatParams(policy.layout, policy.initial())
    for _ in range(50):
        objective.gradient(params, data, np.arange(20))
        params.data.add_(params.grad, alpha=-2.0)
    best = policy.log_table(params.data).argmax(dim=1)
    assert best.tolist() == [s % A for s in range(S)]


def test_export_is_read_without_unpickling(tmp_path):
    policy = Tabular(S, A, 2)
    path = policy.export(policy.initial(), tmp_path / "model")
    with np.load(path, allow_pickle=False) as saved:
        assert saved["output"].shape == (2, A) and saved["log_table"].shape == (S, A)


@pytest.mark.parametrize(
    "arguments", [{"num_states": 0}, {"num_actions": 1}, {"hidden": -1}, {"dtype": "half"},
                  {"reference": np.zeros(3)}]
)
def test_arguments_that_make_no_policy_are_refused(arguments):
    with pytest.raises(PolicyError):
        Tabular(**arguments)
