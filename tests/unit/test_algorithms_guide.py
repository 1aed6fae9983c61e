"""The example in the guide to new algorithms is complete and does what it says."""

import importlib.util
import textwrap

import numpy as np
import torch

import decdpo.algorithms
from decdpo.comm.local import LocalWorld
from decdpo.params.optim import SGD
from decdpo.topology.schedule import make_schedule, round_weights


def example(folder):
    """Import the code of the docstring as a module."""
    lines = decdpo.algorithms.__doc__.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("    '''"))
    last = next(k for k, line in enumerate(lines) if line.startswith("- "))
    path = folder / "consensus_penalty.py"
    path.write_text(textwrap.dedent("\n".join(lines[first:last])))
    spec = importlib.util.spec_from_file_location("consensus_penalty", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_of_the_guide_is_its_formula(tmp_path):
    n, size, lr, strength = 4, 3, 0.1, 2.0
    algorithm = example(tmp_path).ConsensusPenalty(SGD(), size, strength)
    schedule, world = make_schedule("ring", "auto", n), LocalWorld(n)
    exchange = world.exchange(algorithm.message_size(size), torch.float64)
    rng = np.random.default_rng(0)
    X, G = rng.normal(size=(2, n, size))
    states = [algorithm.init(torch.from_numpy(x.copy())) for x in X]
    for i, state in enumerate(states):
        exchange.start(i, 0, schedule.mixing(0).row(i), algorithm.message(state))
    for i, state in enumerate(states):
        algorithm.local_step(state, torch.from_numpy(G[i].copy()), lr)
    for i, state in enumerate(states):
        algorithm.mix(state, exchange.finish(i, 0))
    W = round_weights(schedule.mixing(0), n).toarray()
    found = torch.stack([state.x for state in states]).numpy()
    expected = X - lr * G + lr * strength * (W - np.eye(n)) @ X
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
