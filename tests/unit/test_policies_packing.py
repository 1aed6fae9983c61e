"""Packed rows against each answer scored by itself through the whole model, of several families."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from model_families import FAMILIES, family_config, random_model

from decdpo.errors import EnvironmentFault, PolicyError
from decdpo.params.flat import FlatParams, Layout, flatten
from decdpo.policies.lm.forward import attention, packed, remade
from decdpo.policies.lm.forward.compiled import compile_scorer
from decdpo.policies.lm.forward.head import token_logps
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.forward.packing import pack, packed_size
from decdpo.policies.lm.forward.plain import PlainLM
from decdpo.policies.tokens import TokenizedPairs, Truncation

transformers = pytest.importorskip("transformers")

VOCABULARY = 97


def recompute(model):
    """Let a model recompute its activations; transformers renamed the method in version 5."""
    new = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
    getattr(model, name)({"use_reentrant": False})


def tokens(count, seed=0, least=1):
    """Return ``count`` pairs of random tokens, answers of ``least`` tokens or more."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers([1, least, least], [30, 15, 15], (count, 3))
    ends = np.cumsum(lengths).reshape(count, 3)
    edges = np.hstack((ends[:, :1] - lengths[:, :1], ends))
    ids = rng.integers(2, VOCABULARY, lengths.sum()).astype(np.int32)
    return TokenizedPairs(ids, edges, Truncation(count, 128))


def test_a_row_holds_every_prompt_once_and_no_answers_last_token():
    ids = np.arange(10, 19, dtype=np.int32)
    row = pack(TokenizedPairs(ids, np.array([[0, 3, 5, 9]]), Truncation(1, 9)), [0])
    assert row.ids.tolist() == [10, 11, 12, 13, 15, 16, 17]
    assert row.positions.tolist() == [0, 1, 2, 3, 3, 4, 5]
    assert row.targets.tolist() == [13, 14, 15, 16, 17, 18] and row.lengths == (2, 4)
    assert row.sources.tolist() == [2, 3, 2, 4, 5, 6]
    (segment,) = row.segments
    seen = segment.mask(torch.float32, torch.device("cpu")) == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 1, 0],
        [1, 1, 1, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("least", [0, 1])
def test_the_size_of_a_pair_is_what_it_takes_in_a_row(least):
    pairs = tokens(9, least=least)
    sizes = packed_size(pairs, np.arange(9))
    for row in range(9):
        assert len(pack(pairs, [row]).ids) == sizes[row]
    together = pack(pairs, [3, 0, 8])
    assert len(together.ids) == sizes[[3, 0, 8]].sum()
    assert sum(together.lengths) == len(together.sources) == len(together.targets)


def gradients(model, logps, weights):
    """Return the gradient of the weighted sum of ``logps`` by every parameter, as one vector."""
    model.zero_grad()
    (logps * weights).sum().backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def varlen_on_a_cpu(q, k, v, queries, keys, longest, scale):
    """Do what the kernel of GPUs does: every query sees the keys up to its place from the end."""
    assert q.dim() == 3 and queries.dtype == keys.dtype == torch.int32
    most_q, most_k = longest
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    found = []
    for a, b, c, d in zip(queries, queries[1:], keys, keys[1:]):
        assert 0 < b - a <= most_q and b - a <= d - c <= most_k
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        late = torch.ones(b - a, d - c, dtype=torch.bool).triu(d - c - (b - a) + 1)
        scores = scores.masked_fill(late, -torch.inf)
        found.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d]))
    assert b == len(q) and d == len(k)
    return torch.cat(found)


@pytest.mark.parametrize("way", ["Masked", "Masked, long", "MaskedRow", "Varlen"])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_scores_as_each_answer_by_itself(family, recomputed, way, monkeypatch):
    monkeypatch.setattr(attention, "varlen", varlen_on_a_cpu)
    way, _, long = way.partition(", ")
    if long:
        monkeypatch.setattr(attention, "LONG", 1)
    plain = random_model(family, VOCABULARY)
    pairs, rows = tokens(5), np.array([3, 0, 4])
    weights = torch.linspace(-1, 1, 6).view(2, 3)
    expected = PlainLM(plain)(pairs, rows)
    slope = gradients(plain, expected, weights)
    if recomputed:
        plain.train()
        recompute(plain)
    scorer = PackedLM(plain, attend=getattr(attention, way).of)
    if (way, family) == ("Varlen", "soft caps"):
        with pytest.raises(PolicyError, match="attention scores are capped"):
            scorer(pairs, rows)
        return
    found = scorer(pairs, rows)
    assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-6)
    error = gradients(plain, found, weights) - slope
    assert float(error.norm() / slope.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_made_again_in_the_backward_pass_has_the_same_bits(family, monkeypatch):
    pairs, rows, weights = tokens(5), np.array([3, 0, 4]), torch.linspace(-1, 1, 6).view(2, 3)
    found = []
    made = []
    again = remade.Remade.get
    monkeypatch.setattr(remade.Remade, "get", lambda self: made.append(1) or again(self))
    for spared in (remade.remade, nullcontext):
        monkeypatch.setattr(packed, "remade", spared)
        model = random_model(family, VOCABULARY)
        found.append(gradients(model, PackedLM(model)(pairs, rows), weights))
        assert made, "nothing was made again"
    assert found[0].equal(found[1])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [None, 5])
def test_gradients_of_tokens_gather_in_the_vector_with_autograds_bits(tied, padding):
    torch.manual_seed(0)
    config = family_config("grouped heads")
    config.tie_word_embeddings, config.pad_token_id = tied, padding
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    pairs, weights = tokens(6), torch.linspace(-1, 1, 4).view(2, 2)
    layout = Layout.of(model)
    params = FlatParams(layout, flatten(model, layout))
    found = []
    for embeds in (False, True):
        params.bind(model)
        if not embeds:
            for p in model.parameters():
                del p.main_grad
        params.grad.zero_()
        scored = PackedLM(model, 10**6, embeds)
        for rows in ([3, 0], [4, 1]):
            (scored(pairs, np.array(rows)) * weights).sum().backward()
        found.append(params.grad.clone())
        scored.release()
    assert found[0].any() and torch.equal(*found)


def test_a_model_that_wants_ids_is_scored_fast_all_the_same(monkeypatch):
    from decdpo.policies.lm.forward.choice import choose_scorer

    model = transformers.AutoModelForCausalLM.from_config(family_config("grouped heads")).eval()
    inner, calls = model.model.forward, []

    def forward(input_ids=None, inputs_embeds=None, **rest):
        calls.append(inputs_embeds is None)
        return inner(input_ids=input_ids[:, :], **rest)

    monkeypatch.setattr(model.model, "forward", forward)
    scorer, notes = choose_scorer(model, VOCABULARY, 64, 0)
    assert isinstance(scorer, PackedLM) and notes == () and False in calls
    calls.clear()
    scorer(tokens(3), np.arange(3)).sum().backward()
    assert calls == [True]


def test_a_way_to_attend_that_a_model_cannot_take_is_named(monkeypatch):
    from decdpo.policies.lm.forward import choice

    tried = [attention.Varlen.of, attention.Masked.of]
    monkeypatch.setattr(choice, "ways", lambda *_: tried)
    model = transformers.AutoModelForCausalLM.from_config(family_config("soft caps")).eval()
    scorer, (note,) = choice.choose_scorer(model, VOCABULARY, 64, 0)
    assert isinstance(scorer, PackedLM)
    assert "masks, which is slower" in note and "attention scores are capped" in note


def test_rows_hold_as_many_pairs_as_the_budget_and_all_in_order():
    pairs, rows = tokens(20), np.array([3, 3, 19, 0, 7, 8, 1])
    model = transformers.AutoModelForCausalLM.from_config(family_config("grouped heads"))
    sizes = packed_size(pairs, rows)
    for budget in (0, int(sizes.max()), 90, 10**6):
        parts = PackedLM(model, budget).parts(pairs, rows)
        assert np.concatenate(parts).tolist() == rows.tolist()
        taken = [packed_size(pairs, part).sum() for part in parts]
        assert all(size <= budget or len(part) == 1 for size, part in zip(taken, parts))
        nexts = [packed_size(pairs, part[:1])[0] for part in parts[1:]]
        assert all(size + more > budget for size, more in zip(taken, nexts))
    assert PackedLM(model).parts(pairs, rows[:0]) == []


def test_a_released_model_has_its_own_attention_back():
    model = transformers.AutoModelForCausalLM.from_config(family_config("grouped heads"))
    own = model.config._attn_implementation
    packed = PackedLM(model)
    assert model.config._attn_implementation != own
    packed.release()
    assert model.config._attn_implementation == own == model.model.config._attn_implementation


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
def test_the_head_is_the_log_softmax_whatever_its_chunks(softcap, biased):
    torch.manual_seed(0)
    inputs = [torch.randn(7, 5), torch.randn(11, 5), torch.randn(11)]
    targets, slope = torch.randint(11, (7,)), torch.randn(7)
    hidden, weight, bias = (tensor.requires_grad_() for tensor in inputs)
    logits = hidden @ weight.T + (bias if biased else 0.0)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    plain = logits.log_softmax(dim=1)[torch.arange(7), targets]
    leaves = [hidden, weight, *([bias] if biased else [])]
    expected = torch.autograd.grad(plain, leaves, slope)
    for chunk_values in (1, 33, 1000):
        biases = bias if biased else None
        found = token_logps(hidden, weight, targets, biases, softcap, chunk_values)
        assert torch.allclose(found, plain, rtol=1e-6, atol=1e-6)
        for one, other in zip(torch.autograd.grad(found, leaves, slope), expected):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_no_token_and_a_frozen_head_cost_nothing():
    hidden, weight = torch.randn(3, 5, requires_grad=True), torch.randn(11, 5)
    found = token_logps(hidden, weight, torch.tensor([1, 2, 3]))
    found.sum().backward()
    assert weight.grad is None and hidden.grad is not None
    none = token_logps(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    assert none.shape == (0,)
    none.sum().backward()


def test_the_matrix_of_all_logits_never_exists(monkeypatch):
    from decdpo.policies.lm.forward import head

    made = []
    whole = head.linear

    def watched(*args):
        made.append(whole(*args))
        return made[-1]

    monkeypatch.setattr(head, "linear", watched)
    hidden = torch.randn(64, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    targets = torch.zeros(64, dtype=torch.long)
    token_logps(hidden, weight, targets, chunk_values=500).sum().backward()
    # The first chunk is kept for the gradient.
    assert len(made) == 2 * 7 - 1 and max(logits.numel() for logits in made) <= 500


def test_what_fits_into_a_chunk_is_computed_once(monkeypatch):
    from decdpo.policies.lm.forward import head

    made = []
    whole = head.linear
    monkeypatch.setattr(head, "linear", lambda *args: made.append(args) or whole(*args))
    hidden, weight = torch.randn(8, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    token_logps(hidden, weight, torch.zeros(8, dtype=torch.long)).sum().backward()
    assert len(made) == 1


def test_the_gradient_of_a_half_precision_head_is_summed_in_float32():
    torch.manual_seed(0)
    hidden = torch.randn(512, 16).bfloat16()
    weight = (torch.randn(40, 16) * 0.1).bfloat16().requires_grad_()
    targets, slope = torch.randint(40, (512,)), torch.full((512,), 1 / 512)
    exact = weight.detach().double().requires_grad_()
    logits = hidden.double() @ exact.T
    logits.log_softmax(dim=1)[torch.arange(512), targets].mul(slope).sum().backward()
    errors = []
    for chunk_values in (40, 40 * 512):
        found = token_logps(hidden, weight, targets, chunk_values=chunk_values)
        (slopes,) = torch.autograd.grad(found, weight, slope)
        errors.append(float((slopes.double() - exact.grad).norm() / exact.grad.norm()))
    # Summing 512 chunks loses nothing against one product of all.
    assert errors[0] < 2 * errors[1] + 1e-3


@pytest.mark.filterwarnings("ignore")  # torch warns of its own ways
def test_compiled_layers_score_alike_and_are_compiled_once_for_all_lengths():
    torch._dynamo.reset()
    plain = random_model("grouped heads", VOCABULARY)
    pairs = tokens(6)
    scorer = PackedLM(plain, 10**6)
    weights = torch.linspace(-1, 1, 6).view(2, 3)
    found = []
    for number in range(2):
        each = []
        for rows in ([3, 0, 4], [1, 2, 5], [0, 1, 2]):
            logps = scorer(pairs, np.array(rows))
            each += [logps.detach(), gradients(plain, logps, weights)]
        found.append(each)
        if not number:
            # Code for processors would take a minute to make; what is compiled is the same.
            compile_scorer(scorer, pairs, "eager")
            for _ in range(2):
                (scorer(pairs, np.arange(3)) * weights).sum().backward()
            before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert before and torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    for expected, compiled in zip(*found):
        assert float((expected - compiled).norm() / expected.norm()) < 1e-5


def test_a_compiler_that_fails_is_named(monkeypatch):
    model = transformers.AutoModelForCausalLM.from_config(family_config("grouped heads")).eval()
    scorer = PackedLM(model, 10**6)

    def broken(*_, **__):
        raise RuntimeError("no compiler is there")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **_: setattr(
        layer, "_compiled_call_impl", broken
    ))  # fmt: skip
    with pytest.raises(EnvironmentFault, match="cannot compile the model here: .*no compiler is"):
        compile_scorer(scorer, tokens(2))
