"""Synthetic users trained as their users run it: same bits on any ranks, resumed, exported."""

import json

import numpy as np
import pytest

TRAIN = """[run]
rounds = 6
[data]
shards = "{folder}"
[policy]
{policy}
[comm]
timeout = 60.0
"""
KINDS = {
    "loglinear": ("choices", 'kind = "loglinear"\nfeatures = "columns"'),
    "trajectory": ("trajectories", 'kind = "trajectory"'),
    "tabular": ("trajectories", 'kind = "tabular"\nstates = 20\nactions = 5\nhidden = 4'),
}


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_users_are_trained_resumed_and_exported(shell, kind):
    users, policy = KINDS[kind]
    said = shell("synthesize", users, "--agents", 6, "--pairs", 24, "--out", "users", "--json")
    assert json.loads(said)["kind"] == users
    config = shell.write("run.toml", TRAIN.format(folder="users", policy=policy))
    shell("train", config, "--out", "alone")
    records = shell.metrics("alone")
    assert records[-1]["loss"] < records[0]["loss"]
    shell("resume", "alone", "--set", "run.rounds=8")
    assert shell.metrics("alone")[-1]["round"] == 8
    shell("export", "alone", "--out", "model")
    with np.load(shell.folder / "model" / "policy.npz") as model:
        assert model.files


def test_options_that_would_be_ignored_are_refused(shell):
    shell("synthesize", "choices", "--horizon", 3, "--out", "users", status=2)
    assert "--horizon 3 would be ignored" in shell.said
    shell("synthesize", "choices", "--agents", 0, "--out", "users", status=2)
    assert "agents = 0" in shell.said


def test_choices_under_hashed_features_are_refused_at_the_start(shell):
    shell("synthesize", "choices", "--agents", 2, "--pairs", 8, "--out", "users")
    assert 'train with policy.features = "columns"' in shell.said
    text = TRAIN.format(folder="users", policy="")
    shell("train", shell.write("run.toml", text), "--out", "run", status=2)
    assert "8 of 8 pairs have no text" in shell.said
    assert 'policy.features = "columns"' in shell.said


def test_trajectories_of_another_task_are_refused(shell):
    shell("synthesize", "trajectories", "--agents", 2, "--pairs", 8, "--out", "users")
    text = TRAIN.format(folder="users", policy='kind = "tabular"\nstates = 3\nactions = 5')
    shell("train", shell.write("run.toml", text), "--out", "run", status=2)
    assert "3 states" in shell.said
    (shell.folder / "users" / "features.npy").unlink()
    text = TRAIN.format(folder="users", policy='kind = "trajectory"')
    shell("train", shell.write("run.toml", text), "--out", "run", status=2)
    assert "features.npy" in shell.said
