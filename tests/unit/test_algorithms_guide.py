"""The example in the guide to new algorithms is complete and does what it says."""

import importlib.util
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import decdpo.algorithms
import decdpo.config.algorithms
from decdpo import build
from decdpo.algorithms.base import Needs
from decdpo.algorithms.catalogue import ALGORITHMS
from decdpo.cli import main
from decdpo.comm.local import LocalWorld
from decdpo.config import parse
from decdpo.config.schema import SECTIONS
from decdpo.data.synthetic import Choices, synthesize
from decdpo.errors import ConfigError
from decdpo.params.flat import Layout
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


def section():
    """Return the dataclass of the docstring's section."""
    text = decdpo.algorithms.__doc__
    first = text.index("    @dataclass(frozen=True)\n    class ConsensusPenalty(AlgorithmSection)")
    names = dict(vars(decdpo.config.algorithms))
    exec(textwrap.dedent(text[first : text.index("\nand one line in")]), names)
    return names["ConsensusPenalty"]


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Add the example to decdpo: its file, its section, its line."""
    monkeypatch.setitem(sys.modules, "consensus_penalty", module := example(tmp_path))
    assert '    "consensus_penalty": ConsensusPenalty,\n' in decdpo.algorithms.__doc__
    monkeypatch.setitem(SECTIONS["algorithm"], "consensus_penalty", section())
    monkeypatch.setitem(ALGORITHMS, "consensus_penalty", module.ConsensusPenalty)
    return module.ConsensusPenalty


PENALTY = '[algorithm]\nkind = "consensus_penalty"\n'


def test_file_section_and_line_make_an_algorithm_of_the_configuration(added):
    config = parse(PENALTY + "strength = 0.25")
    algorithm = build.make_algorithm(config.algorithm, SGD(), Layout(("x",), ((4,),), 4))
    assert algorithm == added(SGD(), 4, 0.25)
    assert build.make_topology(config, [1] * 4).symmetric
    assert parse(PENALTY + '[staleness]\nkind = "seeded"').staleness.max_age == 2
    with pytest.raises(ConfigError, match="strength = -1"):
        parse(PENALTY + "strength = -1.0")
    with pytest.raises(ConfigError, match="'consensus_penalty' the agents would not converge"):
        parse(PENALTY + '[topology]\nweights = "push"')


@pytest.mark.parametrize(
    ("needs", "text", "match"),
    [
        ({"every_message": True}, '[staleness]\nkind = "seeded"', "enters them once"),
        ({"fixed_weights": True}, '[topology]\ngraph = "random_matching"', "weights change"),
        ({"weights": "symmetric"}, '[topology]\ngraph = "exponential"', "is directed"),
        ({"equal_steps": True}, '[optim]\nkind = "adamw"', "is not exact"),
        ({"equal_steps": True}, "[optim]\nclip_norm = 1.0", "is not exact"),
        ({"momentum": "nu"}, "[optim]\nmomentum = 0.9", "its own momentum"),
    ],
)
def test_the_checker_reads_what_the_class_declares(added, monkeypatch, needs, text, match):
    parse(PENALTY + text)
    monkeypatch.setattr(added, "needs", Needs(on_loss="keeps", **needs))
    with pytest.raises(ConfigError, match=match) as caught:
        parse(PENALTY + text)
    assert "consensus_penalty" in caught.value.what
    assert needs.get("momentum", "") in caught.value.remedy


def test_an_added_algorithm_trains(added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthesize(Choices(agents=2, pairs=8, dimension=3, holdout=0.25), tmp_path / "shards")
    common = '[data]\nshards = "shards"\nbatch_size = 2\n[policy]\nfeatures = "columns"\n'
    Path("run.toml").write_text(PENALTY + common + "[run]\nrounds = 3\n")
    assert main(["train", "run.toml", "--out", "run"]) == 0


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
    exchange.collect(0)
    for i, state in enumerate(states):
        algorithm.mix(state, exchange.inbox(i, 0))
    W = round_weights(schedule.mixing(0), n).toarray()
    found = torch.stack([state.x for state in states]).numpy()
    expected = X - lr * G + lr * strength * (W - np.eye(n)) @ X
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
