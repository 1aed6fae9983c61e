"""Synthetic users: their distances, their labels, their files."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from decdpo.data.synthetic import Choices, Trajectories, synthesize
from decdpo.data.trajectories import features_digest, load_features, save_features
from decdpo.errors import DataError, EnvironmentFault


@pytest.mark.parametrize("kappa", [0.0, 0.3, 5.0])
def test_every_user_lies_at_distance_kappa(kappa):
    users = Choices(agents=20, kappa=kappa, dimension=7, scale=2.0)
    gaps = [np.linalg.norm(users.reward(i) - users.common()) for i in range(20)]
    assert gaps == pytest.approx([kappa] * 20, abs=1e-12)
    assert np.linalg.norm(users.common()) == pytest.approx(2.0)
    assert kappa == 0 or not np.allclose(users.reward(0), users.reward(1))


def test_a_shard_does_not_depend_on_the_other_agents():
    for users in (Choices(agents=3, pairs=5), Trajectories(agents=3, pairs=5)):
        more = replace(users, agents=50)
        one, other = users.shard(2), more.shard(2)
        assert one.pairs(range(5)) == other.pairs(range(5))
        assert (one.score_gap == other.score_gap).all()
        assert users.sharding != more.sharding


def test_choices_are_labelled_by_bradley_terry():
    users = Choices(agents=1, pairs=20_000, kappa=1.0, dimension=4, scale=1.0, holdout=0.0)
    gap = users.shard(0).score_gap
    # Of the pairs whose rewards differ by about g, a share sigma(g) is won by the better answer.
    for low in (0.0, 0.5, 1.0, 2.0):
        near = np.abs(np.abs(gap) - low - 0.1) < 0.1
        share, expected = np.mean(gap[near] > 0), np.mean(1 / (1 + np.exp(-np.abs(gap[near]))))
        assert share == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(near.sum()))


def test_the_optimum_of_a_user_is_its_reward_over_beta():
    users, beta = Choices(agents=1, pairs=20_000, dimension=3, kappa=0.5), 0.5
    chosen, rejected = users.shard(0).features
    differences = chosen - rejected

    def loss(theta):
        return np.logaddexp(0, -beta * differences @ theta).mean()

    found = minimize(loss, np.zeros(3)).x
    assert found == pytest.approx(users.reward(0) / beta, abs=0.15)


def test_trajectories_follow_the_dynamics_and_the_behaviour_policy():
    users = Trajectories(
        agents=1, pairs=4000, states=3, actions=2, horizon=5, behaviour=1.0, dimension=4
    )
    assert users.dynamics.sum(axis=2) == pytest.approx(np.ones((3, 2)))
    assert not np.allclose(users.behaviour_policy, 0.5)
    states, actions = users.trajectories(np.random.default_rng(0))
    assert (states[0, :, 0] == states[1, :, 0]).all()
    for s in range(3):
        here = states == s
        assert np.mean(actions[here] == 1) == pytest.approx(users.behaviour_policy[s, 1], abs=0.03)
        for u in range(2):
            now = here[:, :, :-1] & (actions[:, :, :-1] == u)
            after = np.bincount(states[:, :, 1:][now], minlength=3) / now.sum()
            assert after == pytest.approx(users.dynamics[s, u], abs=0.03)


def test_scores_are_the_rewards_of_the_written_steps():
    users = Trajectories(agents=2, pairs=6, horizon=4)
    shard, rewards = users.shard(1), users.features @ users.reward(1)
    for row, pair in enumerate(shard.pairs(range(6))):
        assert pair.prompt == pair.chosen.split(":")[0] == pair.rejected.split(":")[0]
        sums = [
            sum(rewards[tuple(map(int, step.split(":")))] for step in text.split())
            for text in (pair.chosen, pair.rejected)
        ]
        assert sums[0] - sums[1] == pytest.approx(shard.score_gap[row], abs=1e-12)


@pytest.mark.parametrize("users", [Choices(agents=3, pairs=7), Trajectories(agents=3, pairs=7)])
def test_files_hold_what_was_made_in_memory(tmp_path, users):
    index = synthesize(users, tmp_path / "shards")
    assert index.num_agents == 3 and index.report["synthetic"]["kind"] == users.kind
    for agent in range(3):
        assert index.open(agent).digest == users.shard(agent).digest
    assert synthesize(users, tmp_path / "again").digest == index.digest
    with pytest.raises(DataError, match="not empty"):
        synthesize(users, tmp_path / "shards")
    assert synthesize(replace(users, seed=1), tmp_path / "shards", force=True).num_agents == 3
    if isinstance(users, Trajectories):
        features = load_features(tmp_path / "again" / "features.npy")
        assert (features == users.features).all()
        assert index.report["synthetic"]["features"] == features_digest(features)


def test_the_share_held_out_leaves_something_to_train_on():
    assert Choices(pairs=10, holdout=0.3).num_train == 7
    assert Choices(pairs=1, holdout=0.9).num_train == 1
    shard = Choices(pairs=10, holdout=0.3).shard(0)
    assert (shard.num_train, shard.num_heldout) == (7, 3)


@pytest.mark.parametrize(
    "kind, fields, word",
    [
        (Choices, {"agents": 0}, "agents = 0"),
        (Choices, {"kappa": -1.0}, "kappa"),
        (Choices, {"kappa": float("nan")}, "kappa"),
        (Choices, {"scale": 1e300}, "scale"),
        (Choices, {"holdout": 1.0}, "holdout"),
        (Choices, {"seed": -1}, "seed"),
        (Trajectories, {"actions": 1}, "actions"),
        (Trajectories, {"behaviour": -1.0}, "behaviour"),
        (Trajectories, {"behaviour": 1e308}, "behaviour"),
    ],
)
def test_numbers_that_make_no_users_are_refused(kind, fields, word):
    with pytest.raises(DataError, match=word):
        kind(**fields)


def test_users_too_large_for_memory_are_refused(tmp_path):
    with pytest.raises(EnvironmentFault, match="do not fit into memory"):
        synthesize(Choices(dimension=10**14), tmp_path / "shards")
    assert not list(tmp_path.iterdir())


def test_feature_maps_are_checked(tmp_path):
    path = tmp_path / "phi.npy"
    with pytest.raises(DataError, match="cannot read"):
        load_features(path)
    save_features(path, np.zeros((2, 3)))
    with pytest.raises(DataError, match="shape"):
        load_features(path)
    save_features(path, np.full((1, 2, 3), np.inf))
    with pytest.raises(DataError, match="not finite"):
        load_features(path)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        load_features(path)
    path.write_bytes(b"no array")
    with pytest.raises(DataError):
        load_features(path)
