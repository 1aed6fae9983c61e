"""A hundred steps the fast way in bfloat16, beside the plain way: rounding must not add up."""

import numpy as np
import pytest
import torch

from decdpo.params.compute import ComputeView
from decdpo.params.flat import FlatParams, Layout, flatten
from decdpo.params.optim import AdamW
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.forward.plain import PlainLM
from decdpo.policies.tokens import TokenizedPairs, Truncation

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
STEPS, VOCABULARY = 100, 64


def pairs_of(count):
    rng = np.random.default_rng(1)
    lengths = rng.integers([2, 2, 2], [10, 8, 8], (count, 3))
    ends = np.cumsum(lengths).reshape(count, 3)
    edges = np.hstack((ends[:, :1] - lengths[:, :1], ends))
    ids = rng.integers(2, VOCABULARY, lengths.sum()).astype(np.int32)
    return TokenizedPairs(ids, edges, Truncation(count, 128))


def trained(way, dtype):
    """Return the masters and the losses of ``STEPS`` steps of DPO on 12 pairs, 4 a step."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    layout = Layout.of(module)
    params = FlatParams(layout, flatten(module, layout))
    start = params.data.clone()
    view = None if dtype == torch.float32 else ComputeView(module, layout, dtype)
    params.bind(module) if view is None else view.follow(params, True)
    scorer = PackedLM(module, 10**6) if way == "packed" else PlainLM(module)
    pairs, optimizer, losses = pairs_of(12), AdamW(), []
    state = optimizer.init(params.data)
    with torch.no_grad():
        reference = scorer(pairs, np.arange(12))
    for step in range(STEPS):
        rows = (np.arange(4) + 4 * step) % 12
        if view is not None:
            view.follow(params, True)
        params.grad.zero_()
        loss = 0.0
        for part in scorer.parts(pairs, rows):
            gap = (scorer(pairs, part) - reference[:, part]).float()
            one = -torch.nn.functional.logsigmoid(0.1 * (gap[0] - gap[1])).sum() / 4
            one.backward()
            loss += float(one.detach())
        losses.append(loss)
        optimizer.step(params.data, state, params.grad, 1e-3)
    return params.data - start, losses


def test_bfloat16_drifts_no_more_than_the_plain_way_does():
    exact, losses = trained("plain", torch.float32)

    def drift(way, dtype):
        moved, found = trained(way, dtype)
        assert np.mean(found[-12:]) == pytest.approx(np.mean(losses[-12:]), rel=0.01)
        return float((moved - exact).norm() / exact.norm())

    assert drift("packed", torch.float32) < 1e-4
    assert drift("packed", torch.bfloat16) < 1.25 * drift("plain", torch.bfloat16) < 0.1
    assert np.mean(losses[-12:]) < 0.3
