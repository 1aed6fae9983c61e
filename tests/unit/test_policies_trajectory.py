"""The trajectory policy against brute-force sums over steps, autograd and finite differences."""

import numpy as np
import pytest
import torch

from decdpo.data.shard import PreferenceShard
from decdpo.data.synthetic import Trajectories
from decdpo.errors import DataError, PolicyError
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.policies.curvature import CurvedPass
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Objective, check_start
from decdpo.policies.trajectory import Trajectory

S, A, D = 4, 3, 5
TASK = Trajectories(agents=2, pairs=30, dimension=D, states=S, actions=A, horizon=6, seed=3)


def made(dtype="float64", reference=None, seed=1):
    policy = Trajectory(TASK.features, dtype, reference)
    x = np.random.default_rng(seed).standard_normal(D)
    return policy, FlatParams(policy.layout, torch.from_numpy(x).to(policy.layout.dtype))


def steps(text):
    return [tuple(map(int, step.split(":"))) for step in text.split()]


def brute_force(theta, texts):
    """Return log pi of every trajectory by the definition, differentiable in theta."""
    phi = torch.from_numpy(TASK.features)
    table = torch.log_softmax(phi @ theta, dim=1)
    return torch.stack([sum(table[s, u] for s, u in steps(text)) for text in texts])


def test_log_probabilities_are_sums_over_the_steps():
    reference = np.linspace(-1, 1, D)
    policy, params = made(reference=reference)
    shard = TASK.shard(0)
    rows = np.array([7, 0, 29])
    logps = policy.forward(params, policy.encode(shard), rows).scores
    pairs = shard.pairs(rows)
    for theta, sides in (
        (params.data, (logps.chosen, logps.rejected)),
        (torch.from_numpy(reference), (logps.ref_chosen, logps.ref_rejected)),
    ):
        for side, name in zip(sides, ("chosen", "rejected")):
            expected = brute_force(theta, [getattr(p, name) for p in pairs])
            assert side.numpy() == pytest.approx(expected.numpy(), rel=1e-13)
    assert (logps.chosen_length == 6).all()


def test_gradient_and_curvature_are_those_of_autograd():
    policy, params = made()
    shard = TASK.shard(1)
    rows = np.array([5, 1, 1, 20])
    forward = policy.forward(params, policy.encode(shard), rows)
    assert isinstance(forward, CurvedPass)
    d_chosen, d_rejected = torch.randn(2, 4, dtype=torch.float64)
    pairs = shard.pairs(rows)

    def total(theta):
        chosen = brute_force(theta, [p.chosen for p in pairs])
        rejected = brute_force(theta, [p.rejected for p in pairs])
        return (d_chosen * chosen + d_rejected * rejected).sum()

    gradient = torch.autograd.functional.jacobian(total, params.data)
    hessian = torch.autograd.functional.hessian(total, params.data).numpy()
    params.grad.fill_(2.0)
    forward.backward({"chosen": d_chosen, "rejected": d_rejected})
    assert (params.grad - 2).numpy() == pytest.approx(gradient.numpy(), rel=1e-11)
    direction = np.random.default_rng(2).standard_normal(D)
    bent = forward.bend(d_chosen.numpy(), d_rejected.numpy(), direction)
    assert bent == pytest.approx(hessian @ direction, rel=1e-10)
    along = forward.along(direction)
    slope = d_chosen.numpy() @ along[0] + d_rejected.numpy() @ along[1]
    assert slope == pytest.approx(gradient.numpy() @ direction, rel=1e-11)


@pytest.mark.parametrize("kind", ["trajectory", "loglinear"])
def test_curved_passes_agree_with_finite_differences(kind):
    if kind == "trajectory":
        policy, params = made()
        shard = TASK.shard(0)
    else:
        rng = np.random.default_rng(0)
        columns = {f"{n}_features": rng.standard_normal((9, D)) for n in ("chosen", "rejected")}
        shard = PreferenceShard.from_pairs([("", "", "")] * 9, columns=columns)
        policy = LogLinear(D, features="columns", dtype="float64")
        params = FlatParams(policy.layout, torch.from_numpy(rng.standard_normal(D)))
    data, rows = policy.encode(shard), np.arange(9)
    d_chosen, d_rejected = torch.randn(2, 9, dtype=torch.float64)
    direction = np.random.default_rng(3).standard_normal(D)

    def at(shift):
        moved = FlatParams(policy.layout, params.data + shift * torch.from_numpy(direction))
        forward = policy.forward(moved, data, rows)
        forward.backward({"chosen": d_chosen, "rejected": d_rejected})
        return moved.grad.numpy(), forward

    (ahead, _), (behind, _), (here, forward) = at(1e-5), at(-1e-5), at(0.0)
    bent = forward.bend(d_chosen.numpy(), d_rejected.numpy(), direction)
    assert bent == pytest.approx((ahead - behind) / 2e-5, rel=1e-7, abs=1e-8)
    back = forward.back(d_chosen.numpy(), d_rejected.numpy())
    assert back == pytest.approx(here, rel=1e-11)
    norms = forward.squared_norms(d_chosen, d_rejected)
    for b in range(9):
        params.grad.zero_()
        alone = policy.forward(params, data, rows[b : b + 1])
        alone.backward({"chosen": d_chosen[b : b + 1], "rejected": d_rejected[b : b + 1]})
        assert norms[b] == pytest.approx(float(params.grad.square().sum()), rel=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_does_not_change_the_bits_of_its_pairs(dtype):
    policy, params = made(dtype)
    data = policy.encode(TASK.shard(0))
    together = policy.forward(params, data, np.arange(30)).scores
    for row in (0, 13, 29):
        alone = policy.forward(params, data, np.array([row])).scores
        assert alone.chosen[0] == together.chosen[row]
        assert alone.rejected[0] == together.rejected[row]
    policy, _ = made(dtype, np.linspace(-1, 1, D))
    check_start(policy, policy.encode(TASK.shard(0)), batch_size=7, batches=5)


def test_it_learns_what_the_user_rewards():
    # One long-sighted test of everything: held-out accuracy far above a coin's.
    users = Trajectories(
        agents=1, pairs=400, dimension=3, states=3, actions=4, horizon=3, scale=3.0, kappa=0
    )
    policy = Trajectory(users.features, "float64")
    objective, data = Objective(policy, DPO(beta=0.5)), policy.encode(users.shard(0))
    params = FlatParams(policy.layout, policy.initial())
    for _ in range(60):
        objective.gradient(params, data, data.train_rows)
        params.data.add_(params.grad, alpha=-1.0)
    held_out = objective.evaluate(params, data, data.heldout_rows).means()
    assert held_out["rewards/accuracies"] > 0.75 and held_out["loss"] < 0.6


def test_an_answer_without_steps_is_certain():
    policy, params = made()
    shard = PreferenceShard.from_pairs([("0", "", "1:2 3:0"), ("0", "2:1", "")])
    logps = policy.forward(params, policy.encode(shard), np.array([0, 1])).scores
    assert logps.chosen[0] == 0 and logps.rejected[1] == 0 and logps.chosen[1] < 0
    assert logps.chosen_length.tolist() == [0, 1]


@pytest.mark.parametrize("text", ["0:3", "4:0", "1", "a:b", "1:-1", "1:1,2:2"])
def test_texts_that_are_no_trajectories_are_refused(text):
    policy, _ = made()
    with pytest.raises(DataError, match="source row 2"):
        policy.encode(PreferenceShard.from_pairs([("0", "0:0", "1:1"), ("0", "1:1 " + text, "")]))


def test_agents_with_another_feature_map_cannot_exchange_messages():
    other = Trajectory(TASK.features + 1)
    assert other.layout.digest != Trajectory(TASK.features).layout.digest


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"features": np.zeros((2, 3))}, "shape"),
        ({"features": np.full((2, 2, 1), np.nan)}, "feature map"),
        ({"features": np.zeros((2, 2, 1)), "dtype": "int8"}, "int8"),
        ({"features": np.zeros((2, 2, 1)), "reference": np.zeros(2)}, "1 finite"),
    ],
)
def test_arguments_that_make_no_policy_are_refused(arguments, word):
    with pytest.raises(PolicyError, match=word):
        Trajectory(**arguments)


def test_export_is_read_without_unpickling(tmp_path):
    policy, params = made("float32")
    path = policy.export(params.data, tmp_path / "model")
    with np.load(path, allow_pickle=False) as saved:
        assert (saved["theta"] == params.data.numpy()).all()
        assert saved["features"].shape == (S, A, D)
