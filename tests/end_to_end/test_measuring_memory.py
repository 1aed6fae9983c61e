"""What is only measured or exported holds one agent's parameters, whatever the run held."""

import gc

import pytest
import torch

from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Objective

VECTOR = 4 * 4096
"""Bytes of the parameters of an agent."""


def vectors():
    """Return how many vectors of that length are alive of those made since ``alive`` began."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors = [tensor for tensor in tensors if tensor.device.type != "meta"]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(nbytes >= VECTOR for nbytes in storages.values())


@pytest.fixture
def alive(monkeypatch):
    """Return the numbers of vectors that were alive whenever something was measured or exported."""
    # What is there already need not be looked through again and again.
    gc.freeze()
    found = []

    def watch(owner, name):
        whole = getattr(owner, name)

        def watched(*args, **more):
            found.append(vectors())
            return whole(*args, **more)

        monkeypatch.setattr(owner, name, watched)

    watch(Objective, "evaluations")
    watch(LogLinear, "export")

    def since():
        result, found[:] = list(found), []
        return result

    yield since
    gc.unfreeze()


def test_evaluate_and_export_hold_one_vector_and_the_mean(shell, config, alive):
    adam = ["--set", "optim.kind=adamw", "--set", "optim.lr=0.01", "--set", "run.rounds=2"]
    shell("train", "run.toml", "--out", "r", *adam)
    # Every agent has its own, two moments, and a message.
    assert max(alive()) > 8 * 3
    shell("evaluate", "r")
    seen = alive()
    assert len(seen) == 2 * 8 and max(seen) <= 2
    shell("export", "r", "--out", "m")
    assert alive() == [2]
    shell("export", "r", "--out", "m3", "--agent", "3")
    assert alive() == [1]


def test_a_run_of_one_agent_holds_nothing_but_its_state_and_a_gradient(shell, config, alive):
    words = ["--set", "agents.count=1", "--set", "optim.kind=adamw", "--set", "run.rounds=2"]
    shell("train", "run.toml", "--out", "r", *words, "--set", "optim.lr=0.01")
    # Its parameters, two moments and the gradient; small states are copied for a checkpoint.
    assert max(alive()) <= 3 + 1 + 1
