"""Personal parts that are restrained: their own step size, and decay towards where they began."""

import numpy as np
import pytest
import torch
from adapted import PAIRS, encoded
from small_models import write_model

from decdpo import build
from decdpo.config import parse
from decdpo.errors import ConfigError
from decdpo.losses.fedpdpo import FedPDPO
from decdpo.metrics.adaptation import adapt, beginning
from decdpo.params.flat import FlatParams
from decdpo.params.optim import SGD, AdamW
from decdpo.params.restraint import Restrained, Restraint, suffix
from decdpo.policies.objective import Objective


def stepped(optimizer, steps=5, lr=0.1, first=0):
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=12))[first:].clone()
    start = x.clone()
    state = optimizer.init(x)
    rng = np.random.default_rng(4)
    for _ in range(steps):
        optimizer.step(x, state, torch.from_numpy(rng.normal(size=12))[first:].clone(), lr)
    return start, x


@pytest.mark.parametrize("inner", [SGD(momentum=0.5, weight_decay=0.1), AdamW(weight_decay=0.1)])
def test_a_restrained_part_steps_by_its_share_and_returns_to_its_start(inner):
    _, free = stepped(inner)
    start, _ = stepped(inner, 0)
    own, other = slice(2, 5), slice(7, 12)
    optimizer = Restrained(
        inner, (Restraint(own, 0.25, 2.0, start[own].clone()), Restraint(other, 1.0, 3.0))
    )
    _, x = stepped(optimizer)
    # What is not restrained has the bits of before.
    assert torch.equal(x[:2], free[:2]) and torch.equal(x[5:7], free[5:7])
    # By hand, step by step: the moments see the parameters only in SGD's own weight decay.
    _, y = stepped(inner, 1)
    moved = start + 0.25 * (y - start)
    expected = start[own] + (1 - 0.1 * 0.25 * 2.0) * (moved - start)[own]
    _, once = stepped(optimizer, 1)
    torch.testing.assert_close(once[own], expected)
    torch.testing.assert_close(once[other], (1 - 0.1 * 3.0) * y[other])


def test_without_restraint_the_bits_are_those_of_before_and_without_end_nothing_moves():
    start, free = stepped(AdamW())
    part = slice(3, 9)
    _, same = stepped(Restrained(AdamW(), (Restraint(part, 1.0, 0.0, start[part].clone()),)))
    assert torch.equal(same, free)
    for share, decay in ((1.0, 1e6), (0.0, 0.0)):
        restraint = Restraint(part, share, decay, start[part].clone())
        _, held = stepped(Restrained(AdamW(), (restraint,)))
        assert torch.equal(held[part], start[part]) and torch.equal(held[:3], free[:3])


def test_a_suffix_is_restrained_where_it_lies():
    start, _ = stepped(AdamW(), 0)
    optimizer = Restrained(AdamW(), (Restraint(slice(6, 9), 0.5, 1.0, start[6:9].clone()),))
    _, whole = stepped(optimizer)
    _, end = stepped(suffix(optimizer, 4), first=4)
    assert torch.equal(whole[4:], end) and suffix(AdamW(), 4) == AdamW()


TEXT = """
[policy]
kind = "causal_lm"
model = "{model}"
max_length = 64
[policy.lora]
rank = 2
[policy.personal]
head = "full"
reward = true
bottleneck = 4
{keys}
[loss]
kind = "fedpdpo"
[optim]
kind = "adamw"
lr = 0.01
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("restraint") / "model", layers=1)


def trained(folder, keys, steps=3):
    config = parse(TEXT.format(model=folder, keys=keys))
    policy = build.make_policy(config, None, "cpu")
    objective = Objective(policy, FedPDPO())
    algorithm = build.make_run_algorithm(config, policy.layout, policy)
    state = algorithm.init(policy.initial())
    params = FlatParams(policy.layout, state.x)
    for _ in range(steps):
        objective.gradient(params, encoded(policy), np.arange(len(PAIRS)))
        algorithm.local_step(state, params.grad, 0.01)
    return policy, params, policy.initial(), config


def moved(policy, params, start):
    places = {name: policy.layout.place(name) for name in policy.layout.names}
    return {
        name.removeprefix("personal."): float((params.data - start)[place].norm())
        for name, place in places.items()
        if name.startswith("personal.")
    }


@pytest.mark.parametrize(
    "part, names", [("head", {"head"}), ("reward", {"reward"}), ("bottleneck", {"up", "down"})]
)
def test_each_key_restrains_the_part_it_names(folder, part, names):
    free = moved(*trained(folder, "")[:3])
    held = moved(*trained(folder, f"{part}_lr_factor = 0.0")[:3])
    assert {name for name in held if not held[name]} == names and all(free.values())
    # A decay of 1 / lr takes all of a step back.
    back = moved(*trained(folder, f"{part}_weight_decay = 100.0")[:3])
    assert {name for name in back if not back[name]} == names
    half = moved(*trained(folder, f"{part}_weight_decay = 50.0")[:3])
    for name in names:
        assert 0 < half[name] < 0.7 * free[name]


def test_new_people_are_restrained_as_those_of_the_run(folder):
    keys = "reward_weight_decay = 100.0"
    policy, params, start, config = trained(folder, keys, 0)
    objective = Objective(policy, FedPDPO())
    model = beginning(objective, params)
    optimizer = build.restrained(build.make_optimizer(config.optim), config, policy)
    adapt(objective, optimizer, model, encoded(policy), np.arange(len(PAIRS)),
          steps=2, batch_size=8, lr=0.01, seed=0)  # fmt: skip
    found = moved(policy, model, start)
    assert not found["reward"] and found["head"] and found["up"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("[policy.personal]\nreward_lr_factor = 2.0", "no personal part is switched on"),
        (
            "[policy.personal]\nreward = true\nhead_weight_decay = 2.0",
            'not used without policy.personal.head = "full" or "low_rank"',
        ),
        ("[policy.personal]\nhead = 'full'\nreward_lr_factor = 2.0", "policy.personal.reward"),
        ("[policy.personal]\nreward = true\nreward_lr_factor = -1.0", "reward_lr_factor"),
        (
            "[policy.personal]\nreward = true\nreward_weight_decay = 1.0\n[algorithm]\n"
            "kind = 'quasi_global_momentum'",
            "by a momentum of its own",
        ),
    ],
)
def test_a_restraint_that_means_nothing_is_refused(text, words):
    base = "[policy]\nkind = 'causal_lm'\n[policy.lora]\nrank = 2\n[loss]\nkind = 'fedpdpo'\n"
    with pytest.raises(ConfigError, match=words):
        parse(base + text)
