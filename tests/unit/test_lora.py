"""Low-rank adapters of a language model: what is trained, what it computes, and PEFT's folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from adapted import PAIRS, encoded, near_start
from small_models import write_model

from decdpo.data.shard import PreferenceShard
from decdpo.errors import PolicyError
from decdpo.params.flat import FlatParams, Tag
from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm.adapters import layers as adapters
from decdpo.policies.lm.adapters.folder import read_options
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.names import MIX_RULES

# PEFT still asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ROWS = np.arange(len(PAIRS))
WAYS = [{}, {"tokens_at_once": 10**6}, {"plain": True}, {"gradient_checkpointing": True}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("lora") / "model", layers=2)


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
    return pytest.importorskip("peft", reason="peft is not installed (extra test)")


def model(folder, mix="factors", rank=3, **more):
    options = {"alpha": 5.0, "seed": 4, **more.pop("options", {})}
    return CausalLM(folder, max_length=64, lora=LoraOptions(rank, mix=mix, **options), **more)


def at(policy, noise=0.05, seed=0):
    return near_start(policy, noise, seed)


def scored(policy, params, rows=ROWS):
    scores = policy.forward(params, encoded(policy), rows, need_grad=False).scores
    return torch.stack((scores.chosen, scores.rejected))


def merged(policy, params, folder):
    """Return a plain model whose weights hold the adapters, W + s B A."""
    policy.bind(params)
    plain = CausalLM(folder, max_length=64)
    x = plain.initial()
    for name, layer in adapters.layers(policy._module):
        core = torch.eye(layer.rank) if layer.lora_core is None else layer.lora_core.detach()
        product = layer.scaling * layer.lora_B.detach() @ core @ layer.lora_A.detach()
        x[plain.layout.place(f"{name}.weight")] += product.reshape(-1)
    return plain, FlatParams(plain.layout, x)


@pytest.mark.parametrize("mix", MIX_RULES)
def test_the_start_is_the_base_model_to_the_bit(folder, mix):
    policy, plain = model(folder, mix), CausalLM(folder, max_length=64)
    start = scored(policy, at(policy, noise=0.0))
    assert torch.equal(start, scored(plain, at(plain, noise=0.0)))
    scores = policy.forward(at(policy, 0.0), encoded(policy), ROWS).scores
    assert torch.equal(torch.stack((scores.ref_chosen, scores.ref_rejected)), start)
    assert not torch.equal(scored(policy, at(policy)), start)


@pytest.mark.parametrize("mix", MIX_RULES)
def test_an_adapted_model_scores_as_one_with_merged_weights(folder, mix):
    policy = model(folder, mix)
    params = at(policy)
    plain, whole = merged(policy, params, folder)
    torch.testing.assert_close(scored(policy, params), scored(plain, whole), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mix", ["factors", "core"])
def test_the_gradient_is_the_chain_rule_of_the_merged_model(folder, way, mix):
    policy = model(folder, mix, **way)
    params = at(policy)
    plain, whole = merged(policy, params, folder)
    slopes = {"chosen": torch.tensor([1.0, -0.5, 2.0]), "rejected": torch.tensor([0.3, 1.0, -1.0])}
    for one, vector in ((policy, params), (plain, whole)):
        one.forward(vector, encoded(one), ROWS).backward(slopes)
    for name, layer in adapters.layers(policy._module):
        slope = whole.grad[plain.layout.place(f"{name}.weight")].view(layer.weight.shape)
        a, b = layer.lora_A.detach(), layer.lora_B.detach()
        expected = {"lora_A": b.t() @ slope, "lora_B": slope @ a.t()}
        if mix == "core":
            expected = {"lora_core": b.t() @ slope @ a.t()}
        for part, value in expected.items():
            found = params.grad[policy.layout.place(f"{name}.{part}")].view(value.shape)
            torch.testing.assert_close(found, layer.scaling * value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_no_gradient_of_a_frozen_weight_is_made(folder, way):
    policy = model(folder, **way)
    params = at(policy)
    made = []
    for name, parameter in policy._module.named_parameters():
        if "lora" not in name:
            assert not parameter.requires_grad
            assert getattr(parameter, "main_grad", None) is None
            continue
        made.append(parameter.requires_grad)
    ones = torch.ones(len(PAIRS))
    forward = policy.forward(params, encoded(policy), ROWS)
    forward.backward({"chosen": ones, "rejected": -ones})
    assert all(made) and params.grad.any()
    frozen = [p for n, p in policy._module.named_parameters() if "lora" not in n]
    assert all(parameter.grad is None for parameter in frozen)
    # Neither is the head's, which the fast way computes by itself.
    if not way.get("plain"):
        assert policy.scorer._vocabulary._scratch is None


TAGS = {
    "factors": (Tag.SHARED, Tag.SHARED),
    "svd": (Tag.SHARED, Tag.SHARED),
    "freeze_a": (Tag.FROZEN, Tag.SHARED),
    "share_a": (Tag.SHARED, Tag.PERSONAL),
    "core": (Tag.FROZEN, Tag.FROZEN),
}


@pytest.mark.parametrize("mix", MIX_RULES)
def test_a_rule_says_what_is_trained_and_what_travels(folder, mix):
    policy = model(folder, mix)
    tags = {name: policy.layout.tag(name) for name, _ in policy._module.named_parameters()}
    a = {tag for name, tag in tags.items() if name.endswith("lora_A")}
    b = {tag for name, tag in tags.items() if name.endswith("lora_B")}
    assert (a, b) == tuple({tag} for tag in TAGS[mix])
    core = {tag for name, tag in tags.items() if name.endswith("lora_core")}
    assert core == ({Tag.SHARED} if mix == "core" else set())
    assert {tag for name, tag in tags.items() if "lora" not in name} == {Tag.FROZEN}
    widths = [(p.in_features, p.out_features) for _, p in adapters.layers(policy._module)]
    travels = {
        "factors": sum(3 * (k + d) for k, d in widths),
        "svd": sum(3 * (k + d) for k, d in widths),
        "freeze_a": sum(3 * d for _, d in widths),
        "share_a": sum(3 * k for k, _ in widths),
        "core": 9 * len(widths),
    }
    assert policy.layout.num_shared == travels[mix]


def test_agents_share_one_frozen_model_and_swap_their_adapters(folder):
    policy = model(folder)
    first, second = at(policy, seed=1), at(policy, seed=2)
    weights = {n: p.data_ptr() for n, p in policy._module.named_parameters() if "lora" not in n}
    alone = [scored(model(folder), one) for one in (first, second)]
    assert torch.equal(scored(policy, first), alone[0])
    assert torch.equal(scored(policy, second), alone[1])
    assert torch.equal(scored(policy, first), alone[0])
    after = {n: p.data_ptr() for n, p in policy._module.named_parameters() if "lora" not in n}
    assert after == weights
    assert policy.initial().numel() == policy.layout.size < 10**5


def test_without_the_cache_the_reference_is_the_same_model_at_the_start(folder):
    policy, cached = model(folder, cache_reference=False), model(folder)
    params = at(policy)
    gradients = []
    for one in (policy, cached):
        vector = FlatParams(one.layout, params.data.clone())
        forward = one.forward(vector, encoded(one), ROWS)
        forward.backward({"chosen": torch.ones(3), "rejected": -torch.ones(3)})
        gradients.append(vector.grad)
        found = torch.stack((forward.scores.ref_chosen, forward.scores.ref_rejected))
        assert torch.equal(found, scored(one, at(one, noise=0.0)))
    assert torch.equal(*gradients)


def test_reference_values_of_the_whole_model_serve_all_adapters(folder, tmp_path):
    path = tmp_path / "agent_000002.h5"
    PreferenceShard.from_pairs(PAIRS, agent=2).save(path)
    computed = []
    for policy in (CausalLM(folder, max_length=64), model(folder), model(folder, "core", rank=2)):
        data = policy.encode(PreferenceShard.open(path))
        computed.append(policy.reference.computed)
        assert torch.equal(data.reference, scored(policy, at(policy, 0.0)))
    # The longest pair is always scored again, and not counted.
    assert computed == [3, 0, 0]


def test_bfloat16_computes_in_it_and_trains_float32_adapters(folder):
    half, full = model(folder, dtype="bfloat16"), model(folder)
    kinds = {p.dtype for n, p in half._module.named_parameters() if "lora" not in n}
    assert kinds == {torch.bfloat16} and half.layout.dtype == torch.float32
    torch.testing.assert_close(
        scored(half, at(half)), scored(full, at(full)), rtol=3e-2, atol=3e-2
    )
    params = at(half)
    half.forward(params, encoded(half), ROWS).backward(
        {"chosen": torch.ones(3), "rejected": -torch.ones(3)}
    )
    assert params.grad.dtype == torch.float32 and params.grad.any()


@pytest.mark.parametrize("mix", ["freeze_a", "core"])
def test_frozen_factors_compute_in_bfloat16_too(folder, mix):
    half = model(folder, mix, dtype="bfloat16")
    assert torch.isfinite(scored(half, at(half))).all()


def test_a_pattern_names_layers_and_an_unknown_one_is_an_error(folder):
    policy = model(folder, options={"targets": ("q_proj", "*.1.mlp.*")})
    names = [name for name, _ in adapters.layers(policy._module)]
    assert names == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    ]
    with pytest.raises(PolicyError, match="'c_attn'.*names no linear layer") as caught:
        model(folder, options={"targets": ("c_attn",)})
    assert "q_proj" in caught.value.remedy
    with pytest.raises(PolicyError, match="output head"):
        model(folder, options={"targets": ("lm_head",)})
    with pytest.raises(PolicyError, match="rank = 4096"):
        model(folder, rank=4096)


def test_a_seed_draws_a_and_stabilised_scaling_divides_by_the_root(folder):
    first, again, other = (model(folder, options={"seed": s}).initial() for s in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert LoraOptions(16, 32.0).scaling == 2.0
    assert LoraOptions(16, 32.0, rank_stabilised=True).scaling == 8.0


def test_the_digest_holds_the_frozen_base_and_the_adapters_form(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    digests = {mix: model(folder, mix).digest for mix in MIX_RULES}
    assert len(set(digests.values())) == len(MIX_RULES)
    assert model(folder).digest == digests["factors"]
    assert model(folder, options={"alpha": 6.0}).digest != digests["factors"]
    # Another frozen A is another model, though the vector has neither.
    assert model(folder, "freeze_a", options={"seed": 5}).digest != digests["freeze_a"]
    other = shutil.copytree(folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert model(other).digest != digests["factors"]


def test_frames_are_the_leading_singular_vectors():
    drawn = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(drawn.double())
    for rank in (3, 12):  # by an iteration, and whole
        left, right = adapters.frames(drawn, rank)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(left @ right, best, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(right @ right.t(), torch.eye(rank).double())
        again = adapters.frames(drawn, rank)
        assert torch.equal(again[0], left) and torch.equal(again[1], right)


def logits(module, tokenizer):
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        return module(input_ids=ids).logits


def loaded(peft, out):
    from transformers import AutoModelForCausalLM

    base = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).eval()


@pytest.mark.parametrize("mix", ["factors", "core"])
@pytest.mark.parametrize("options", [{}, {"rank_stabilised": True, "targets": ("q_proj", "up*")}])
def test_peft_computes_the_same_with_an_exported_adapter(peft, folder, tmp_path, mix, options):
    policy = model(folder, mix, options=options)
    params = at(policy)
    out = policy.export(params.data, tmp_path / "adapter")
    assert {f.name for f in out.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    policy.bind(params)
    expected = logits(policy._module, policy.tokenizer)
    theirs = loaded(peft, out)
    torch.testing.assert_close(logits(theirs, policy.tokenizer), expected, rtol=0, atol=1e-5)
    # It is no small matter, for the adapter is not 0.
    with theirs.disable_adapter():
        assert (logits(theirs, policy.tokenizer) - expected).abs().max() > 1e-3
    ids = policy.tokenizer("Once", return_tensors="pt").input_ids
    written = theirs.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(written[0], greedy(policy._module, ids, 5))


def greedy(module, ids, count):
    for _ in range(count):
        with torch.no_grad():
            best = module(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat((ids, best.view(1, 1)), dim=1)
        if best == module.config.eos_token_id:
            break
    return ids[0]


@pytest.fixture
def theirs(peft, folder, tmp_path):
    """Return a folder that PEFT has written, of an adapter that is not 0, and its logits."""
    from transformers import AutoModelForCausalLM

    def make(**config):
        base = AutoModelForCausalLM.from_pretrained(folder)
        known = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], **config}
        torch.manual_seed(3)
        wrapped = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **known)).eval()
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        wrapped.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs", wrapped

    return make


@pytest.mark.parametrize("mix", ["factors", "freeze_a", "share_a", "svd"])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"target_modules": "all-linear"}])
def test_an_adapter_of_peft_is_where_agents_begin(theirs, folder, mix, config):
    out, wrapped = theirs(**config)
    policy = CausalLM(folder, max_length=64, lora=read_options(out, mix), adapter=out)
    params = at(policy, noise=0.0)
    policy.bind(params)
    found = logits(policy._module, policy.tokenizer)
    torch.testing.assert_close(found, logits(wrapped, policy.tokenizer), rtol=0, atol=1e-5)
    scores = policy.forward(params, encoded(policy), ROWS, need_grad=False).scores
    assert torch.equal(scores.chosen, scores.ref_chosen)
    plain = CausalLM(folder, max_length=64)
    assert not torch.equal(scores.chosen, scored(plain, at(plain, 0.0))[0])
    # What goes on from it goes back as it came.
    again = policy.export(policy.initial(), out.parent / "again")
    assert read_options(again, mix).targets == read_options(out, mix).targets


REFUSED = [
    {"use_dora": True},
    {"bias": "lora_only"},
    {"rank_pattern": {"q_proj": 1}},
    {"modules_to_save": ["lm_head"]},
    {"init_lora_weights": "pissa"},
    {"peft_type": "IA3"},
]


@pytest.mark.parametrize("more", REFUSED, ids=lambda more: next(iter(more)))
def test_what_peft_can_and_we_do_not_is_refused_by_name(folder, tmp_path, more):
    out = model(folder).export(model(folder).initial(), tmp_path / "adapter")
    path = out / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    with pytest.raises(PolicyError, match=f"{next(iter(more))} = .* is not computed here"):
        read_options(out, "factors")


def test_a_folder_that_is_no_adapter_is_one_error(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(PolicyError, match="adapter_config.json cannot be used"):
        read_options(tmp_path, "factors")
    policy = model(folder)
    out = policy.export(policy.initial(), tmp_path / "adapter")
    weights = load_file(out / "adapter_model.safetensors")

    def attempt(tensors):
        save_file(tensors, out / "adapter_model.safetensors")
        options = read_options(out, "factors")
        CausalLM(folder, max_length=64, lora=options, adapter=out)

    some = next(iter(weights))
    with pytest.raises(PolicyError, match="is no factor of a linear layer"):
        attempt({**weights, "base_model.model.lm_head.weight": torch.zeros(2, 2)})
    with pytest.raises(PolicyError, match="NaN or infinite"):
        attempt({**weights, some: weights[some] * torch.nan})
    with pytest.raises(PolicyError, match="has shape .* in the file"):
        attempt({**weights, some: torch.zeros(3, 5)})
    with pytest.raises(PolicyError, match="names no linear layer|is no linear layer"):
        attempt({**weights, "base_model.model.model.x.lora_A.weight": torch.zeros(3, 5)})
    (out / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(PolicyError, match="cannot be read"):
        read_options(out, "factors")
    (out / "adapter_model.safetensors").unlink()
    with pytest.raises(PolicyError, match="has no file adapter_model.safetensors"):
        read_options(out, "factors")


def test_layers_that_hold_their_weight_the_other_way_round(peft, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    source = write_model(tmp_path / "llama")
    torch.manual_seed(0)
    small = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=128, vocab_size=300)
    gpt = tmp_path / "gpt"
    GPT2LMHeadModel(small).save_pretrained(gpt)
    for file in source.glob("token*"):
        shutil.copy(file, gpt)
    policy = model(gpt)
    params = at(policy)
    out = policy.export(params.data, tmp_path / "adapter")
    policy.bind(params)
    expected = logits(policy._module, policy.tokenizer)
    found = logits(loaded(peft, out), policy.tokenizer)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(scored(policy, at(policy, 0.0)), scored(*whole(gpt)))


def whole(folder):
    plain = CausalLM(folder, max_length=64)
    return plain, at(plain, 0.0)
