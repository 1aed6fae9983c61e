"""Causal language models against double precision, autograd and themselves."""

import json
import tempfile
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import STORIES, real_or_random
from torch import nn

from decdpo.data.shard import Pair, PreferenceShard
from decdpo.errors import PolicyError
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.params.optim import AdamW
from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.encoded import summed
from decdpo.policies.lm.forward.plain import PlainLM, Scored, answer_logps
from decdpo.policies.objective import Objective, check_start

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "stories260K.json"

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
real = pytest.mark.skipif(not STORIES.is_dir(), reason=f"no test model {STORIES}")

PAIRS = [
    Pair("Once upon a time", " there was a little girl named Lily.", " the tax was due."),
    Pair("Tom had a big red ball. He", " liked to play with it.", " ate it and then some more."),
    Pair("The dog", " ran.", " said that he would not run today, for it was raining hard."),
    Pair("", "Hello!", "No."),
    Pair("One day, a bird saw a cat. The bird was scared.\nSo it", " flew away.", ""),
    Pair("Mom said, \"Let's go to the park!\" They", " were happy.", " cried all the day long."),
]
ROWS = np.arange(len(PAIRS))
MADE = tempfile.TemporaryDirectory()
MODEL = real_or_random(Path(MADE.name), [text for pair in PAIRS for text in astuple(pair)])


def shard(pairs=PAIRS, **more):
    return PreferenceShard.from_pairs(pairs, agent=2, **more)


@pytest.fixture(scope="module")
def policy():
    return CausalLM(MODEL, max_length=64)


def start(policy, noise=0.0, seed=0):
    x = policy.initial()
    torch.manual_seed(seed)
    return FlatParams(policy.layout, x + noise * torch.randn_like(x))


class Oracle:
    """The same quantities in float64, straight from transformers' logits."""

    def __init__(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.parameters = dict(self.model.named_parameters())
        for norm in self.model.modules():
            if type(norm).__name__ == "LlamaRMSNorm":
                # The model's own computes in float32, whatever its type.
                norm.forward = partial(self.rms_norm, norm)

    @staticmethod
    def rms_norm(norm, h):
        return norm.weight * h / (h.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()

    def load(self, policy, x):
        for name, part in zip(policy.layout.names, x.double().split(sizes(policy))):
            self.parameters[name].data = part.clone().view_as(self.parameters[name])

    def logp(self, prompt, answer):
        before = self.tokenizer(prompt).input_ids
        ids = torch.tensor([self.tokenizer(prompt + answer).input_ids + [2]])
        logits = self.model(input_ids=ids).logits[0, :-1]
        each = logits - logits.logsumexp(dim=-1, keepdim=True)
        return each[torch.arange(len(each)), ids[0, 1:]][len(before) - 1 :].sum()

    def logps(self, pairs=PAIRS):
        both = [(self.logp(p.prompt, p.chosen), self.logp(p.prompt, p.rejected)) for p in pairs]
        return torch.stack([torch.stack(two) for two in both], dim=1)

    def dpo(self, reference, beta):
        chosen, rejected = self.logps() - reference
        return -nn.functional.logsigmoid(beta * (chosen - rejected)).mean()


def sizes(policy):
    return [int(np.prod(shape)) for shape in policy.layout.shapes]


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


def stacked(logps):
    return torch.stack((logps.chosen, logps.rejected)).double()


WAYS = [{}, {"tokens_at_once": 100}, {"tokens_at_once": 10**6}, {"plain": True}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_log_probabilities_agree_with_double_precision(oracle, way):
    policy = CausalLM(MODEL, max_length=64, **way)
    params, data = start(policy, 0.02), policy.encode(shard())
    logps = policy.forward(params, data, ROWS).scores
    with torch.no_grad():
        oracle.load(policy, policy.initial())
        reference = oracle.logps()
        oracle.load(policy, params.data)
        expected = oracle.logps()
    assert stacked(logps).numpy() == pytest.approx(expected.numpy(), rel=2e-6)
    found = torch.stack((logps.ref_chosen, logps.ref_rejected))
    assert found.numpy() == pytest.approx(reference.numpy(), rel=2e-6)
    assert logps.chosen_length[3] == len(oracle.tokenizer("Hello!").input_ids)
    assert logps.rejected_length[4] == 1
    margins = (expected - reference).numpy()
    loss = np.log1p(np.exp(-0.7 * (margins[0] - margins[1]))).mean()
    stats = Objective(policy, DPO(beta=0.7)).evaluate(params, data, ROWS)
    assert stats.means()["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_gradient_is_that_of_double_precision(oracle, way):
    policy = CausalLM(MODEL, max_length=64, **way)
    params, data, beta = start(policy, 0.02, seed=1), policy.encode(shard()), 0.5
    Objective(policy, DPO(beta)).gradient(params, data, ROWS)
    with torch.no_grad():
        oracle.load(policy, policy.initial())
        reference = oracle.logps()
    oracle.load(policy, params.data)
    loss = oracle.dpo(reference, beta)
    grads = torch.autograd.grad(loss, [oracle.parameters[n] for n in policy.layout.names])
    expected = torch.cat([g.reshape(-1) for g in grads])
    assert (params.grad.double() - expected).norm() < 1e-5 * expected.norm()

    direction = torch.randn_like(expected)
    direction /= direction.norm()
    values = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            oracle.load(policy, params.data.double() + step * direction)
            values.append(oracle.dpo(reference, beta).item())
    slope = (values[0] - values[1]) / 2e-5
    assert params.grad.double().dot(direction).item() == pytest.approx(slope, rel=1e-4)


def test_rewards_start_at_exactly_zero(policy):
    data = policy.encode(shard())
    check_start(policy, data)
    rows = np.array([5, 0, 0, 3])
    means = Objective(policy, DPO()).gradient(start(policy), data, rows).means()
    assert means["rewards/accuracies"] == 0.5
    assert means["rewards/chosen"] == means["rewards/rejected"] == 0


def test_a_cached_reference_equals_one_computed_with_each_batch(policy):
    fresh = CausalLM(MODEL, max_length=64, cache_reference=False)
    check_start(fresh, fresh.encode(shard()))
    found = []
    for one in (policy, fresh):
        params = start(one, 0.01)
        stats = Objective(one, DPO()).gradient(params, one.encode(shard()), ROWS)
        found.append((stats.values, params.grad))
    assert (found[0][0] == found[1][0]).all()
    assert torch.equal(found[0][1], found[1][1])


def test_one_by_one_a_batch_does_not_change_the_bits_of_its_pairs(policy):
    params, data = start(policy, 0.02), policy.encode(shard())
    parts = policy.parts(data, ROWS)
    assert [part.tolist() for part in parts] == [[row] for row in ROWS]
    together = Objective(policy, DPO()).evaluate(params, data, ROWS)
    alone = Objective(policy, DPO()).evaluate(params, data, ROWS[::-1].copy())
    assert together.values == pytest.approx(alone.values, rel=1e-13)


def test_padding_has_no_influence_but_rounding(policy):
    module, tokens = policy.bind(start(policy, 0.02)), policy.encode(shard()).tokens
    with torch.no_grad():
        one_by_one = PlainLM(module)(tokens, ROWS)
        padded = PlainLM(module, padded=True)(tokens, ROWS)
    assert padded.numpy() == pytest.approx(one_by_one.numpy(), rel=1e-5)


@real
def test_masks_come_from_lengths_and_not_from_ids(policy):
    module = policy.bind(start(policy))
    eos = policy.tokenizer.eos_token_id
    assert policy.tokenizer.pad_token_id == eos
    inner = Scored(torch.tensor([1, 346, eos, eos, 306, eos]), 3)
    long = Scored(torch.arange(1, 20), 4)
    with torch.no_grad():
        pair = answer_logps(module, [inner, long])
        alone = torch.cat([answer_logps(module, [inner]), answer_logps(module, [long])])
    assert pair.numpy() == pytest.approx(alone.numpy(), rel=1e-5)


def test_a_model_that_cannot_limit_its_logits_gives_the_same(policy, monkeypatch):
    module, tokens = policy.bind(start(policy, 0.02)), policy.encode(shard()).tokens
    with torch.no_grad():
        expected = PlainLM(module)(tokens, ROWS)
        monkeypatch.setattr("decdpo.policies.lm.forward.plain._keeps_logits", lambda forward: False)
        found = PlainLM(module)(tokens, ROWS)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-5)


@real
def test_large_batches_are_evaluated_in_parts(policy):
    small = CausalLM(MODEL, max_length=64, tokens_at_once=100)
    assert 1 < len(small.parts(small.encode(shard()), ROWS[:5])) < 5
    found = []
    for one in (policy, small):
        params = start(one, 0.02)
        stats = Objective(one, DPO()).gradient(params, one.encode(shard()), ROWS[:5])
        found.append((stats, params.grad))
    # Statistics are added up part by part.
    assert found[0][0].values == pytest.approx(found[1][0].values, rel=1e-6)
    assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()


def test_recomputed_activations_give_the_same_bits(policy):
    saving = CausalLM(MODEL, max_length=64, gradient_checkpointing=True)
    grads = []
    for one in (policy, saving):
        params = start(one, 0.02)
        Objective(one, DPO()).gradient(params, one.encode(shard()), ROWS)
        grads.append(params.grad)
    assert torch.equal(*grads)
    recomputed = []
    layer = saving._module.model.layers[0].self_attn
    layer.register_forward_hook(lambda *_: recomputed.append(1))
    forward = saving.forward(params, saving.encode(shard(PAIRS[:1])), ROWS[:1])
    before = len(recomputed)
    forward.backward({"chosen": torch.ones(1), "rejected": torch.ones(1)})
    assert len(recomputed) == before + 1


def train(policies, data, steps=4):
    """Train two agents in turns, each by the policy given for it; returns their losses."""
    agents = [start(policies[0]), start(policies[1], 0.01, seed=9)]
    losses = []
    for step in range(steps):
        for policy, params in zip(policies, agents):
            rows = (np.arange(3) + step) % 6
            stats = Objective(policy, DPO(beta=0.1)).gradient(params, data, rows)
            params.data.add_(params.grad, alpha=-0.05)
            losses.append(stats.means()["loss"])
    return losses, [params.data for params in agents]


def test_one_module_serves_two_agents_as_two_modules_would(policy):
    data = policy.encode(shard())
    shared = train([policy, policy], data)
    own = train([CausalLM(MODEL, max_length=64), CausalLM(MODEL, max_length=64)], data)
    assert shared[0] == own[0]
    assert torch.equal(shared[1][0], own[1][0]) and torch.equal(shared[1][1], own[1][1])
    assert not torch.equal(shared[1][0], shared[1][1])


def test_a_pass_finds_its_parameters_again_after_another_agents(policy):
    data, first, second = policy.encode(shard()), start(policy, 0.02), start(policy, 0.02, seed=3)
    forward = policy.forward(first, data, ROWS[:2])
    policy.forward(second, data, ROWS[:2])
    forward.backward({"chosen": torch.ones(2), "rejected": torch.zeros(2)})
    late = first.grad.clone()
    first.grad.zero_()
    again = policy.forward(first, data, ROWS[:2])
    again.backward({"chosen": torch.ones(2), "rejected": torch.zeros(2)})
    assert torch.equal(late, first.grad) and not second.grad.any()


@real
def test_losses_of_a_short_training_are_the_committed_ones(policy):
    losses, _ = train([policy, policy], policy.encode(shard()))
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-4)
    assert losses[0] == pytest.approx(np.log(2), rel=1e-7)


@real
def test_tied_weights_are_one_copy(policy):
    assert policy.layout.size == 260_032
    assert "lm_head.weight" not in policy.layout.names


def test_bfloat16_computes_near_float32_and_keeps_float32_masters(policy):
    half = CausalLM(MODEL, dtype="bfloat16", max_length=64)
    assert half.layout == policy.layout
    params, data = start(half), half.encode(shard())
    check_start(half, data)
    logps = half.forward(params, data, ROWS).scores
    full = policy.forward(start(policy), policy.encode(shard()), ROWS).scores
    assert logps.chosen.dtype == torch.float32
    assert logps.chosen.numpy() == pytest.approx(full.chosen.numpy(), rel=0.02)
    assert not torch.equal(logps.chosen, full.chosen)
    Objective(half, DPO()).gradient(params, data, ROWS)
    slope = params.grad.clone()
    exact = start(policy)
    Objective(policy, DPO()).gradient(exact, policy.encode(shard()), ROWS)
    assert slope.dtype == torch.float32
    assert (slope - exact.grad).norm() < 0.05 * exact.grad.norm()


def test_steps_below_the_spacing_of_bfloat16_are_not_lost():
    half = CausalLM(MODEL, dtype="bfloat16", max_length=64)
    params, data, optimizer = start(half), half.encode(shard()), AdamW()
    before, state = params.data.clone(), optimizer.init(params.data)
    moved = torch.zeros(half.layout.size, dtype=torch.bool)
    for _ in range(20):
        Objective(half, DPO()).gradient(params, data, ROWS)
        moved |= params.grad != 0
        optimizer.step(params.data, state, params.grad, 1e-6)
    changed = params.data != before
    assert changed[moved].double().mean() > 0.9
    # The next pass computes with the new parameters, not with an old copy.
    seen = half.forward(params, data, ROWS[:1], need_grad=False).scores.chosen.clone()
    params.data.mul_(1.1)
    assert not torch.equal(seen, half.forward(params, data, ROWS[:1]).scores.chosen)


def test_two_agents_share_one_bfloat16_module_and_keep_their_gradients_apart():
    half = CausalLM(MODEL, dtype="bfloat16", max_length=64)
    first, second, data = start(half, 0.02), start(half, 0.02, seed=1), half.encode(shard())
    alone = []
    for params in (first, second):
        Objective(half, DPO()).gradient(params, data, ROWS[:3])
        alone.append(params.grad.clone())
    assert not torch.equal(*alone)
    Objective(half, DPO()).gradient(first, data, ROWS[:3])
    assert torch.equal(first.grad, alone[0]) and torch.equal(second.grad, alone[1])


def test_bfloat16_exports_its_float32_parameters_and_goes_on(tmp_path):
    half = CausalLM(MODEL, dtype="bfloat16", max_length=64)
    params, data = start(half, 0.02), half.encode(shard())
    before = half.forward(params, data, ROWS[:2], need_grad=False).scores.chosen
    again = CausalLM(half.export(params.data, tmp_path / "model"), max_length=64)
    assert torch.equal(again.initial(), params.data)
    assert torch.equal(half.forward(params, data, ROWS[:2]).scores.chosen, before)


def test_a_model_that_does_more_to_its_logits_is_scored_the_plain_way(monkeypatch):
    from transformers import LlamaForCausalLM

    whole = LlamaForCausalLM.forward

    def cooler(self, *args, **options):
        output = whole(self, *args, **options)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", cooler)
    policy = CausalLM(MODEL, max_length=64)
    assert isinstance(policy.scorer, PlainLM)
    assert any("encodes the prompt anew" in note and "differ" in note for note in policy.notes)
    data = policy.encode(shard())
    check_start(policy, data)
    Objective(policy, DPO()).gradient(start(policy), data, ROWS)


def test_an_export_reloads_to_the_same_logits(policy, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    params = start(policy, 0.05)
    out = policy.export(params.data, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = policy.bind(params)(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, expected)
    again = CausalLM(out, max_length=64)
    assert again.layout == policy.layout and torch.equal(again.initial(), params.data)
    with pytest.raises(PolicyError, match="exists already"):
        policy.export(params.data, out)


def test_dropout_is_off_but_stays_in_an_exported_configuration(tmp_path):
    from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_positions=64, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5,
        embd_pdrop=0.5, attn_pdrop=0.5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "gpt2")
    for checkpointing in (False, True):
        policy = CausalLM(tmp_path / "gpt2", max_length=64, gradient_checkpointing=checkpointing)
        data = policy.encode(shard())
        check_start(policy, data)
        params = start(policy)
        Objective(policy, DPO()).gradient(params, data, ROWS)
        first = params.grad.clone()
        Objective(policy, DPO()).gradient(params, data, ROWS)
        assert torch.equal(first, params.grad) and first.any()
    out = policy.export(policy.initial(), tmp_path / "out")
    assert AutoConfig.from_pretrained(out).attn_pdrop == 0.5


@real
def test_a_chat_template_of_the_folder_is_used(policy, tmp_path):
    template = "{% for m in messages %}{{ m.role }}> {{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant> {% endif %}"
    out = policy.export(policy.initial(), tmp_path / "chat")
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    chat = CausalLM(out, max_length=64)
    pair = Pair("\n\nHuman: Hi\n\nAssistant:", " Yes.", " No.")
    tokens = chat.encode(shard([pair], prompt_format="hh")).tokens
    prompt, chosen, _ = (chat.tokenizer.decode(part) for part in tokens.parts(0))
    assert prompt.split() == ["user>", "Hi</s>", "assistant>"]
    assert chosen.strip() == "Yes.</s>"


def test_an_empty_shard_is_encoded(policy):
    data = policy.encode(shard([]))
    assert data.num_pairs == 0 and data.reference.shape == (2, 0)
    check_start(policy, data)


def test_truncation_is_reported(policy):
    long = Pair("word " * 100, " yes", " no")
    data = policy.encode(shard([long, PAIRS[0]]))
    assert str(data.tallies[0]) == "1 of 2 prompts were cut at their start by max_length = 64"
    assert np.diff(data.tokens.edges[0])[:2].sum() <= 64
    assert summed(policy.encode(shard(PAIRS[:2])).tallies) == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"dtype": "float16"}, "float16"),
        ({"max_length": 1024}, "made for 512 tokens"),
        ({"max_length": 1}, "no room"),
        ({"max_length": 8, "min_prompt_length": 8}, "no room"),
        ({"min_prompt_length": 0}, "no room"),
        ({"tokens_at_once": -1}, "no room"),
    ],
)
def test_arguments_that_make_no_policy_are_refused(arguments, words):
    with pytest.raises(PolicyError, match=words):
        CausalLM(MODEL, **arguments)


def test_folders_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(PolicyError, match="is missing"):
        CausalLM(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match="'' is missing"):
        CausalLM("", allow_hub=True)
    with pytest.raises(PolicyError, match="has no config.json"):
        CausalLM(tmp_path)
    (tmp_path / "config.json").write_text((MODEL / "config.json").read_text())
    with pytest.raises(PolicyError, match="cannot be loaded"):
        CausalLM(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    whole = (MODEL / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PolicyError, match="cannot be loaded"):
        CausalLM(tmp_path)


@real
def test_a_folder_that_lacks_weights_is_refused(tmp_path, policy):
    from safetensors.torch import load_file, save_file

    out = policy.export(policy.initial(), tmp_path / "part")
    weights = load_file(out / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyError, match="lacks weights, first 'model.layers.3.mlp.up_proj"):
        CausalLM(out)


def test_ids_beyond_the_vocabulary_are_refused(policy, monkeypatch):
    monkeypatch.setattr(policy, "_vocabulary", 400)
    with pytest.raises(PolicyError, match="model has 400 tokens"):
        policy.encode(shard())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_nearly_the_same(policy):
    there = CausalLM(MODEL, device="cuda", max_length=64)
    params, data = FlatParams(there.layout, there.initial()), there.encode(shard())
    check_start(there, data)
    Objective(there, DPO()).gradient(params, data, ROWS)
    here = start(policy)
    Objective(policy, DPO()).gradient(here, policy.encode(shard()), ROWS)
    assert (params.grad.cpu() - here.grad).norm() < 1e-3 * here.grad.norm()
