"""The log-linear policy against dense double-precision arithmetic and autograd."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from decdpo.data.shard import PreferenceShard
from decdpo.errors import DataError, PolicyError
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Objective

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "loglinear.json"
HH = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless-base_test.jsonl.gz"
WORDS = "yes no please sorry maybe the a you I can not help with that sure never".split()


def text_shard(num=40, agent=3, seed=0):
    rng = np.random.default_rng(seed)
    triples = [
        tuple(" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(3))
        for _ in range(num)
    ]
    return PreferenceShard.from_pairs(triples, num_train=num - 8, agent=agent)


def column_shard(num=20, dimension=6, seed=0, **extra):
    rng = np.random.default_rng(seed)
    columns = {
        "chosen_features": rng.standard_normal((num, dimension)),
        "rejected_features": rng.standard_normal((num, dimension)),
        **extra,
    }
    return PreferenceShard.from_pairs([("p", "c", "r")] * num, columns=columns)


def at(policy, seed):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal(policy.layout.size)).to(policy.layout.dtype)
    return FlatParams(policy.layout, x)


def test_log_probabilities_are_a_softmax_over_the_two_answers():
    shard = column_shard()
    reference = np.linspace(-1, 1, 6)
    policy = LogLinear(6, features="columns", dtype="float64", reference=reference)
    params = at(policy, 1)
    rows = np.array([4, 0, 19])
    logps = policy.forward(params, policy.encode(shard), rows).scores
    features = np.stack(shard.features)[:, rows]
    for theta, chosen, rejected in (
        (params.data.numpy(), logps.chosen, logps.rejected),
        (reference, logps.ref_chosen, logps.ref_rejected),
    ):
        scores = features @ theta
        expected = scores - np.logaddexp(*scores)
        assert chosen.numpy() == pytest.approx(expected[0], rel=1e-13)
        assert rejected.numpy() == pytest.approx(expected[1], rel=1e-13)
    assert (logps.chosen_length == 1).all() and logps.chosen_length.shape == (3,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_is_that_of_autograd_through_a_dense_softmax(dtype):
    policy = LogLinear(512, dtype=dtype)
    data = policy.encode(text_shard())
    params = at(policy, 2)
    rows = np.array([5, 1, 1, 30])
    forward = policy.forward(params, data, rows)
    d_chosen, d_rejected = torch.randn(2, 4, dtype=policy.layout.dtype)
    params.grad.fill_(2.0)
    forward.backward({"chosen": d_chosen, "rejected": d_rejected})

    theta = params.data.double().requires_grad_()
    dense = torch.from_numpy(data.differences.matrix.toarray()[rows]).double()
    both = torch.log_softmax(torch.stack((dense @ theta, torch.zeros(4).double())), dim=0)
    total = (d_chosen.double() * both[0] + d_rejected.double() * both[1]).sum()
    (expected,) = torch.autograd.grad(total, theta)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert (params.grad.double() - 2.0).numpy() == pytest.approx(expected.numpy(), abs=tolerance)


def test_dpo_is_logistic_regression_on_feature_differences():
    shard = column_shard()
    policy = LogLinear(6, features="columns", dtype="float64", reference=np.ones(6))
    params, beta = at(policy, 3), 0.7
    stats = Objective(policy, DPO(beta=beta)).gradient(
        params, policy.encode(shard), np.arange(20)
    )
    differences = shard.features[0] - shard.features[1]
    z = beta * differences @ (params.data.numpy() - 1)
    assert stats.means()["loss"] == pytest.approx(np.log1p(np.exp(-z)).mean(), rel=1e-12)
    expected = -beta * (differences / (1 + np.exp(z))[:, None]).mean(axis=0)
    assert params.grad.numpy() == pytest.approx(expected, rel=1e-11)


def test_extreme_margins_stay_finite():
    policy = LogLinear(6, features="columns", dtype="float32", reference=np.full(6, 1e4))
    data = policy.encode(column_shard())
    params = FlatParams(policy.layout, -policy.initial())
    stats = Objective(policy, DPO()).gradient(params, data, np.arange(20))
    assert np.isfinite(stats.values).all() and torch.isfinite(params.grad).all()
    assert stats.means()["saturated"] == 1.0


def test_a_batch_does_not_change_the_bits_of_its_pairs():
    policy = LogLinear(4096)
    data, params = policy.encode(text_shard()), at(policy, 4)
    together = policy.forward(params, data, np.arange(40)).scores
    for row in (0, 17, 39):
        alone = policy.forward(params, data, np.array([row])).scores
        assert alone.chosen[0] == together.chosen[row]
        assert alone.rejected[0] == together.rejected[row]


def test_agents_may_share_one_gradient_buffer():
    policy = LogLinear(256)
    objective = Objective(policy, DPO())
    shared = torch.zeros(256)
    grads = []
    for grad in (None, shared):
        pair = [FlatParams(policy.layout, at(policy, s).data, grad) for s in (0, 1)]
        for seed, params in enumerate(pair):
            objective.gradient(params, policy.encode(text_shard(seed=seed)), np.arange(8))
            grads.append(params.grad.clone())
    assert (grads[0] == grads[2]).all() and (grads[1] == grads[3]).all()
    assert not (grads[0] == grads[1]).all()


def train(policy, shard, steps=6, lr=2.0):
    objective = Objective(policy, DPO(beta=0.5))
    params = FlatParams(policy.layout, policy.initial())
    data, losses = policy.encode(shard), []
    for step in range(steps):
        rows = (np.arange(8) + 8 * step) % shard.num_train
        losses.append(objective.gradient(params, data, rows).means()["loss"])
        params.data.add_(params.grad, alpha=-lr)
    return losses


def test_losses_of_a_short_training_are_the_committed_ones():
    golden = json.loads(GOLDEN.read_text())
    losses = train(LogLinear(2**10, dtype="float64"), text_shard())
    assert losses == pytest.approx(golden["losses"], rel=1e-12)
    assert losses[0] == pytest.approx(np.log(2), rel=1e-15)


def test_training_is_repeatable_to_the_bit():
    assert train(LogLinear(2**10), text_shard()) == train(LogLinear(2**10), text_shard())


@pytest.mark.skipif(not HH.is_file(), reason=f"no data set {HH}")
def test_it_learns_human_preferences_on_held_out_pairs():
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    split = [[r[k].rpartition("\n\nAssistant:") for k in ("chosen", "rejected")] for r in rows]
    pairs = [(c[0], c[2], r[2]) for c, r in split if c[0] == r[0]]
    order = np.random.default_rng(0).permutation(len(pairs))
    shard = PreferenceShard.from_pairs([pairs[i] for i in order], num_train=len(pairs) * 3 // 4)
    policy = LogLinear()
    objective, data = Objective(policy, DPO(beta=0.1)), policy.encode(shard)
    params = FlatParams(policy.layout, policy.initial())
    rng = np.random.default_rng(1)
    for _ in range(1000):
        objective.gradient(params, data, rng.integers(0, shard.num_train, 16))
        params.data.add_(params.grad, alpha=-2.0)
    held_out = objective.evaluate(params, data, data.heldout_rows, batch_size=256).means()
    trained = objective.evaluate(params, data, data.train_rows, batch_size=256).means()
    # One standard deviation of the held-out accuracy is 0.02; guessing gives 0.5.
    assert held_out["rewards/accuracies"] > 0.57 and held_out["loss"] < np.log(2)
    assert trained["rewards/accuracies"] > 0.8


def test_export_is_read_without_unpickling(tmp_path):
    policy = LogLinear(16, seed=5, reference=np.arange(16.0))
    x = at(policy, 6).data
    path = policy.export(x, tmp_path / "model")
    assert path == tmp_path / "model.npz" and list(tmp_path.iterdir()) == [path]
    with np.load(path, allow_pickle=False) as saved:
        assert (saved["theta"] == x.numpy()).all() and saved["theta"].dtype == np.float32
        assert (saved["theta_ref"] == np.arange(16)).all()
        assert str(saved["features"]) == "hashed" and int(saved["seed"]) == 5


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"dimension": 0}, "dimension"),
        ({"features": "tfidf"}, "tfidf"),
        ({"dtype": "float16"}, "float16"),
        ({"seed": -1}, "seed"),
        ({"dimension": 4, "reference": np.zeros(3)}, "4 finite"),
        ({"dimension": 2, "reference": np.array([0.0, np.nan])}, "2 finite"),
    ],
)
def test_arguments_that_make_no_policy_are_refused(arguments, word):
    with pytest.raises(PolicyError, match=word):
        LogLinear(**arguments)


def test_shards_that_do_not_fit_are_refused():
    with pytest.raises(PolicyError, match="no feature columns"):
        LogLinear(6, features="columns").encode(text_shard())
    with pytest.raises(PolicyError, match="6 feature columns, but the policy has 7"):
        LogLinear(7, features="columns").encode(column_shard())
    with pytest.raises(DataError, match="weights"):
        LogLinear(6, features="columns").encode(column_shard(weight=np.zeros(20)))
