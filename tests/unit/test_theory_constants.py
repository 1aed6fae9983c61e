"""Measured constants against dense linear algebra, definitions and many drawn batches."""

import numpy as np
import pytest
import torch

from decdpo.comm.local import LocalWorld
from decdpo.data.sampling import EpochSampler
from decdpo.data.synthetic import Choices, Trajectories
from decdpo.errors import ConfigError
from decdpo.losses.balanced import BDPO
from decdpo.losses.dpo import DPO, RobustDPO
from decdpo.losses.hinge import Hinge
from decdpo.losses.ipo import SummedIPO
from decdpo.params.flat import FlatParams
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Objective
from decdpo.policies.tabular import Tabular
from decdpo.policies.trajectory import Trajectory
from decdpo.theory import curvature
from decdpo.theory.bounds import Problem
from decdpo.theory.constants import batch_noise, measure, smoothness
from decdpo.theory.curvature import agent_hessian, largest_eigenvalue

USERS = Choices(agents=4, pairs=30, dimension=5, kappa=1.5, seed=2)
BETA = 0.6


def log_linear(users=USERS, loss=None, dtype="float64"):
    policy = LogLinear(users.dimension, features="columns", dtype=dtype)
    data = {i: policy.encode(users.shard(i)) for i in range(users.agents)}
    return Objective(policy, loss or DPO(beta=BETA)), data, start(policy)


def start(policy, seed=None):
    params = FlatParams(policy.layout, policy.initial())
    if seed is not None:
        rng = np.random.default_rng(seed)
        params.data.copy_(torch.from_numpy(rng.standard_normal(policy.layout.size)))
    return params


def differences(users, agent):
    chosen, rejected = users.shard(agent).features
    return (chosen - rejected)[: users.num_train]


def test_log_linear_constants_are_those_of_logistic_regression():
    objective, data, params = log_linear()
    found = measure(LocalWorld(4), objective, params, data, batch_size=8)
    phis = [differences(USERS, i) for i in range(4)]
    # At theta_ref every sigma(-z) is 1/2.
    gradients = np.array([-BETA * phi.mean(axis=0) / 2 for phi in phis])
    mean = gradients.mean(axis=0)
    assert found.kappa_sq == pytest.approx(np.square(gradients - mean).sum(axis=1).mean())
    assert found.gradient_sq == pytest.approx(mean @ mean)
    variance = [
        np.square(-BETA * phi / 2 - g).sum(axis=1).mean() for phi, g in zip(phis, gradients)
    ]
    assert found.pair_variance == pytest.approx(np.mean(variance))
    moments = [phi.T @ phi / len(phi) for phi in phis]
    top = [np.linalg.eigvalsh(m)[-1] for m in moments]
    assert found.smoothness == pytest.approx(
        BETA**2 / 4 * np.linalg.eigvalsh(np.mean(moments, axis=0))[-1]
    )
    assert found.smoothness_max == pytest.approx(BETA**2 / 4 * max(top))
    assert found.loss == pytest.approx(np.log(2))
    assert (found.num_agents, found.num_params, found.num_pairs) == (4, 5, 4 * USERS.num_train)


def test_the_optimum_has_no_gradient_and_smoothness_bounds_every_curvature():
    objective, data, params = log_linear()
    world = LocalWorld(4)
    found = measure(world, objective, params, data, batch_size=8)
    assert found.optimum_is == "L-BFGS, converged" and 0 < found.gap < np.log(2)
    for seed in range(5):
        elsewhere = measure(world, objective, start(objective.policy, seed), data, 8, iterations=0)
        assert elsewhere.smoothness == pytest.approx(found.smoothness)
        hessians = [
            agent_hessian(objective, start(objective.policy, seed), data[i], data[i].train_rows)
            for i in range(4)
        ]
        top = largest_eigenvalue(lambda v: sum(h(v) for h in hessians) / 4, 5)
        assert top <= found.smoothness * (1 + 1e-9)
        assert elsewhere.loss >= found.optimum


def test_the_gap_of_a_known_problem():
    # IPO of one-step choices is least squares: L* in closed form.
    objective, data, params = log_linear(loss=SummedIPO(beta=0.5))
    found = measure(LocalWorld(4), objective, params, data, batch_size=8)
    phi = np.concatenate([differences(USERS, i) for i in range(4)])
    best, residual, *_ = np.linalg.lstsq(phi, np.ones(len(phi)), rcond=None)
    assert found.optimum == pytest.approx(residual[0] / len(phi), rel=1e-9)
    assert found.smoothness == pytest.approx(2 * np.linalg.eigvalsh(phi.T @ phi / len(phi))[-1])


@pytest.mark.parametrize("size", [1, 7, 27, 30, 60])
def test_batch_noise_is_that_of_the_batches_training_draws(size):
    objective, data, params = log_linear(Choices(agents=1, pairs=30, dimension=3))
    shard = data[0]
    pairs = shard.num_train
    assert pairs == 27
    found = measure(LocalWorld(1), objective, params, data, batch_size=size, iterations=0)
    objective.gradient(params, shard, shard.train_rows)
    mean = params.grad.clone()
    sampler, errors = EpochSampler(0, 0, pairs), []
    for step in range(540):
        objective.gradient(params, shard, sampler.rows(step, size))
        errors.append(float((params.grad - mean).square().sum()))
    assert found.zeta_sq == pytest.approx(batch_noise(found.pair_variance, pairs, size))
    if size % pairs == 0:
        assert found.zeta_sq == 0 and max(errors) < 1e-25
    elif size < pairs:
        # Batches that lie across two epochs differ a little from samples without replacement.
        assert np.mean(errors) == pytest.approx(found.zeta_sq, rel=0.15)


@pytest.mark.parametrize("loss", [DPO(beta=0.7), BDPO(beta=0.7)])
def test_exact_products_agree_with_differences_of_gradients(loss):
    users = Trajectories(agents=1, pairs=12, dimension=4, states=5, actions=3, horizon=4)
    policy = Trajectory(users.features, "float64")
    objective, data = Objective(policy, loss), policy.encode(users.shard(0))
    params, rows = start(policy, 1), data.train_rows
    exact = agent_hessian(objective, params, data, rows)
    for unit in np.eye(4):
        ends = []
        for shift in (1e-5, -1e-5):
            moved = FlatParams(policy.layout, params.data + shift * torch.from_numpy(unit))
            objective.gradient(moved, data, rows)
            ends.append(moved.grad.numpy())
        assert exact(unit) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_policies_without_closed_forms_are_measured_by_gradients_alone():
    users = Trajectories(agents=2, pairs=12, dimension=4, states=3, actions=2, horizon=2)
    table = Tabular(3, 2, dtype="float64")
    one_hot = Trajectory(np.eye(6).reshape(3, 2, 6), "float64")
    found = []
    for policy in (table, one_hot):
        data = {i: policy.encode(users.shard(i)) for i in range(2)}
        objective = Objective(policy, DPO(beta=1.0))
        found.append(measure(LocalWorld(2), objective, start(policy, 4), data, batch_size=4))
    names = ("smoothness", "smoothness_max", "loss", "gradient_sq", "kappa_sq", "zeta_sq")
    for name in names:
        assert getattr(found[0], name) == pytest.approx(getattr(found[1], name), rel=1e-5), name
    assert found[0].optimum == 0 and "least" in found[0].optimum_is
    assert found[1].optimum > 0 and found[0].smoothness_max > found[0].smoothness


def test_equal_agents_have_no_heterogeneity_and_weights_count():
    objective, data, params = log_linear()
    same = {i: data[0] for i in range(3)}
    found = measure(LocalWorld(3), objective, params, same, batch_size=8, iterations=0)
    assert found.kappa_sq < 1e-25 and found.zeta_sq > 0
    few = measure(LocalWorld(4), objective, params, data, 8, max_pairs=10, iterations=0)
    assert few.num_pairs == 40 and few.loss == pytest.approx(np.log(2))


def test_many_parameters_are_handled_without_forming_a_matrix():
    users = Choices(agents=2, pairs=40, dimension=120)
    objective, data, params = log_linear(users)
    found = measure(LocalWorld(2), objective, params, data, batch_size=8, iterations=5)
    phi = np.concatenate([differences(users, i) for i in range(2)])
    expected = BETA**2 / 4 * np.linalg.norm(phi, 2) ** 2 / len(phi)
    assert found.smoothness == pytest.approx(expected, rel=1e-6)


def test_the_least_smooth_agent_is_found_without_a_matrix_by_few_gradients(monkeypatch):
    users = Trajectories(agents=3, pairs=8, dimension=4, states=20, actions=4, horizon=6)
    table = Tabular(20, 4, dtype="float64")
    objective = Objective(table, DPO(beta=1.0))
    data = {i: table.encode(users.shard(i)) for i in range(3)}
    params, calls = start(table, 2), []
    real = curvature.mean_gradient
    monkeypatch.setattr(
        curvature, "mean_gradient", lambda *args: (calls.append(1), real(*args))[1]
    )
    rows = {i: shard.train_rows for i, shard in data.items()}
    found, largest, _ = smoothness(LocalWorld(3), objective, params, data, rows)
    # A product is a difference of two gradients; as many for the agents as for the objective.
    assert len(calls) <= 2 * 3 * 2 * 40
    own = []
    for i in range(3):
        apply = agent_hessian(objective, params, data[i], rows[i])
        matrix = np.stack([apply(unit) for unit in np.eye(80)])
        own.append(np.abs(np.linalg.eigvalsh((matrix + matrix.T) / 2)).max())
    assert found < max(own) and largest == pytest.approx(max(own), rel=1e-2)


def test_the_bounds_are_given_the_smoothness_of_the_least_smooth_agent():
    objective, data, params = log_linear()
    found = measure(LocalWorld(4), objective, params, data, batch_size=8)
    problem = found.problem()
    assert problem.smoothness == found.smoothness
    assert problem.smoothness_max == found.smoothness_max > found.smoothness
    squared = found.gradient_sq + found.kappa_sq + found.zeta_sq
    assert problem == Problem(
        found.smoothness, found.smoothness_max, found.gap, found.kappa_sq, found.zeta_sq, squared, 4
    )


def test_no_curvature_is_a_smoothness_of_zero():
    # The hinge loss of a choice between two answers is piecewise linear.
    objective, data, params = log_linear(Choices(agents=2, pairs=10, dimension=60), Hinge())
    found = measure(LocalWorld(2), objective, params, data, batch_size=8, iterations=0)
    assert (found.smoothness, found.smoothness_max) == (0.0, 0.0)


@pytest.mark.parametrize("eps", [0.1, 1e-4])
def test_a_loss_that_falls_for_ever_has_no_initial_gap(eps):
    # Fewer pairs than features can be separated: every margin may grow without end.
    users = Choices(agents=2, pairs=10, dimension=40)
    objective, data, params = log_linear(users, RobustDPO(beta=BETA, label_smoothing=eps))
    for iterations in (0, 30):
        found = measure(LocalWorld(2), objective, params, data, 8, iterations=iterations)
        assert found.optimum is None and found.gap is None and "rDPO" in found.optimum_is
        assert found.smoothness > 0 and found.to_json()["gap"] is None
        with pytest.raises(ConfigError, match="initial gap"):
            found.problem()
    plain = RobustDPO(beta=BETA, label_smoothing=0.0)
    objective = log_linear(users, plain)[0]
    assert measure(LocalWorld(2), objective, params, data, 8, iterations=0).gap > 0


def test_pairs_that_contradict_one_another_give_rdpo_a_least_value():
    objective, data, params = log_linear(loss=RobustDPO(beta=BETA, label_smoothing=0.1))
    found = measure(LocalWorld(4), objective, params, data, batch_size=8)
    assert found.optimum_is == "L-BFGS, converged" and found.gap > 0
