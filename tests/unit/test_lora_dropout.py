"""Dropout of adapters: masks by address, in the gradients of local steps and nowhere else."""

import json

import numpy as np
import pytest
import torch
from adapted import PAIRS, encoded, near_start
from small_models import write_model
from torch import nn

from decdpo import build
from decdpo.config import parse
from decdpo.errors import ConfigError, PolicyError
from decdpo.losses.dpo import DPO
from decdpo.policies.base import Draw
from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm.adapters import layers as adapters
from decdpo.policies.lm.adapters.dropout import Dropout
from decdpo.policies.lm.adapters.folder import read_options
from decdpo.policies.lm.adapters.layers import AdaptedLinear, LoraOptions
from decdpo.policies.objective import Batch, Objective

ROWS = np.arange(len(PAIRS))
STEP = Draw(agent=2, step=5)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("dropout") / "model", layers=2)


def model(folder, dropout=0.3, **more):
    options = LoraOptions(3, 5.0, seed=4, dropout=dropout)
    return CausalLM(folder, max_length=64, lora=options, **more)


def gradient(policy, draw, rows=ROWS):
    params = near_start(policy, 0.05)
    Objective(policy, DPO()).gradient(params, encoded(policy), rows)
    plain = params.grad.clone()
    batch = Batch(params, encoded(policy), rows, draw=draw)
    stats = next(Objective(policy, DPO()).gradients([batch]))
    return plain, params.grad.clone(), stats


def scored(policy, draw=None, rows=ROWS):
    scores = policy.forward(
        near_start(policy, 0.05), encoded(policy), rows, need_grad=False, draw=draw
    ).scores
    policy.end_draw()
    return torch.stack((scores.chosen, scores.rejected))


def mask(dropout, draw, row, layer, shape=(40, 60)):
    dropout.begin(draw, np.array([row]), np.array([shape[0]]))
    kept = dropout(torch.ones(1, *shape), layer)[0]
    dropout.end()
    return kept


def test_a_mask_follows_from_its_address_alone_and_keeps_the_mean():
    dropout = Dropout(0.25, seed=3)
    first = mask(dropout, STEP, 7, 1)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert abs(float(first.mean()) - 1) < 0.04
    again = Dropout(0.25, seed=3)
    mask(again, Draw(0, 0), 1, 0)
    assert torch.equal(mask(again, STEP, 7, 1), first)
    others = [
        mask(Dropout(0.25, seed=4), STEP, 7, 1),
        *(mask(dropout, draw, 7, 1) for draw in (Draw(1, 5), Draw(2, 6))),
        mask(dropout, STEP, 6, 1),
        mask(dropout, STEP, 7, 2),
    ]
    for other in others:
        # Two independent masks agree in 1 - 2 p (1 - p) of the places.
        assert abs(float((other == first).float().mean()) - 0.625) < 0.05


def test_an_adapter_sees_what_its_mask_leaves_and_the_layer_sees_all():
    dropout = Dropout(0.5, seed=0)
    base = nn.Linear(6, 5)
    layer = AdaptedLinear(base, 2, 1.5, False, place=3, dropout=dropout)
    nn.init.normal_(layer.lora_A), nn.init.normal_(layer.lora_B)
    x = torch.randn(1, 8, 6)
    dropout.begin(STEP, np.array([4, 2]), np.array([5, 3]))
    found = layer(x)
    dropout.end()
    kept = torch.cat([mask(dropout, STEP, 4, 3, (5, 6)), mask(dropout, STEP, 2, 3, (3, 6))])
    expected = base(x) + 1.5 * (x * kept) @ layer.lora_A.t() @ layer.lora_B.t()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer(x), base(x) + 1.5 * x @ layer.lora_A.t() @ layer.lora_B.t())


@pytest.mark.parametrize("cached", [True, False])
def test_local_steps_have_dropout_and_measurements_and_the_reference_have_none(folder, cached):
    policy, without = (model(folder, p, cache_reference=cached) for p in (0.3, 0.0))
    assert policy.noisy and not without.noisy and policy.digest == without.digest
    plain, dropped, stats = gradient(policy, STEP)
    _, again, _ = gradient(policy, STEP)
    _, other, _ = gradient(policy, STEP._replace(step=6))
    assert torch.equal(dropped, again) and not torch.equal(dropped, other)
    assert torch.equal(plain, gradient(without, STEP)[0]) and not torch.equal(plain, dropped)
    assert torch.equal(scored(policy), scored(without))
    assert not torch.equal(scored(policy, STEP), scored(without))
    # The reference of a step with dropout is that of one without.
    known = policy.forward(near_start(policy, 0.05), encoded(policy), ROWS, draw=STEP).scores
    base = without.forward(near_start(without, 0.05), encoded(without), ROWS).scores
    assert torch.equal(known.ref_chosen, base.ref_chosen)


def test_the_mask_of_a_pair_does_not_depend_on_its_batch(folder):
    alone = model(folder)
    whole = scored(alone, STEP)
    for rows in (ROWS[::-1].copy(), ROWS[1:], ROWS[2:]):
        parts = [scored(alone, STEP, rows[i : i + 1]) for i in range(len(rows))]
        assert torch.equal(torch.cat(parts, dim=1), torch.stack([whole[:, r] for r in rows], 1))
    packed = model(folder, tokens_at_once=10**6)
    torch.testing.assert_close(scored(packed, STEP), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(packed, STEP)[1], gradient(alone, STEP)[1], rtol=1e-4, atol=1e-6
    )


def test_what_is_computed_again_has_the_mask_of_before(folder):
    again = model(folder, gradient_checkpointing=True)
    torch.testing.assert_close(gradient(again, STEP)[1], gradient(model(folder), STEP)[1])


def test_a_gradient_is_the_slope_of_the_loss_under_its_mask(folder):
    policy = model(folder)
    data, loss = encoded(policy), DPO()
    _, grad, _ = gradient(policy, STEP)
    params = near_start(policy, 0.05)
    way = torch.randn(grad.shape, generator=torch.Generator().manual_seed(1))
    way /= way.norm()
    values = []
    for side in (1, -1):
        params.data.add_(way, alpha=side * 1e-2)
        scores = policy.forward(params, data, ROWS, need_grad=False, draw=STEP).scores
        values.append(float(loss(scores).double().mean()))
        params.data.add_(way, alpha=-side * 1e-2)
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(grad @ way), rel=0.02, abs=2e-5)


def test_a_folder_of_peft_says_the_dropout_and_is_told_it(folder, tmp_path):
    policy = model(folder, 0.125)
    policy.export(policy.initial(), tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["lora_dropout"] == 0.125
    assert read_options(tmp_path / "adapter", "factors").dropout == 0.125
    lora = read_options(tmp_path / "adapter", "factors", seed=4)
    begun = CausalLM(folder, max_length=64, lora=lora, adapter=tmp_path / "adapter")
    assert begun.noisy
    said["lora_dropout"] = 1.0
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(PolicyError, match="lora_dropout"):
        read_options(tmp_path / "adapter", "factors")


@pytest.mark.parametrize(
    "more, words", [({"plain": True}, "cannot have dropout"), ({"compiled": True}, "compile")]
)
def test_dropout_is_refused_where_no_mask_can_be_drawn(folder, more, words):
    with pytest.raises(PolicyError, match=words):
        model(folder, **more)


def test_the_configuration_has_it(folder):
    text = f"[policy]\nkind = 'causal_lm'\nmodel = '{folder}'\n[policy.lora]\n"
    config = parse(text + "rank = 2\ndropout = 0.2\n")
    policy = build.make_policy(config, None, "cpu")
    assert policy.noisy and policy.weights.options.dropout == 0.2
    assert next(adapters.layers(policy._module))[1]._dropout is policy.weights.dropout
    for bad, words in (("dropout = 0.2\n", "rank = 0"), ("rank = 2\ndropout = 1.0\n", "dropout")):
        with pytest.raises(ConfigError, match=words):
            parse(text + bad)
