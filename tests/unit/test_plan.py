"""``decdpo plan``: what a run needs, from shapes alone."""

import json
from contextlib import nullcontext

import pytest

from decdpo.cli import main

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")

SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32}  # fmt: skip
SEVENTY = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
           "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip


@pytest.fixture
def plan(tmp_path, capsys):
    """Return a function that plans a run of a Llama of the sizes given, and returns the page."""

    def call(sizes, *words, agents=4, status=0, **sections):
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
                  "vocab_size": 32000, "max_position_embeddings": 4096,
                  "tie_word_embeddings": False, **sizes}  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config))
        lines = [f"[agents]\ncount = {agents}\n[optim]\nkind = \"adamw\"\n"]
        lines += [f"[policy]\nkind = \"causal_lm\"\nmodel = \"{tmp_path}\"\n"]
        (tmp_path / "run.toml").write_text("".join(lines))
        sets = [w for key, value in sections.items() for w in ("--set", f"{key}={value}")]
        capsys.readouterr()
        words = ["plan", str(tmp_path / "run.toml"), "--json", *words, *sets]
        assert main([str(word) for word in words]) == status
        return json.loads(capsys.readouterr().out)

    return call


@pytest.mark.parametrize(("sizes", "billions"), [(SEVEN, 6.74), (SEVENTY, 68.98)])
def test_a_large_model_is_planned_from_its_configuration(plan, sizes, billions):
    page = plan(sizes, "--ranks", 4, "--memory", 80, status=1)
    count = page["parameters"]
    assert count / 1e9 == pytest.approx(billions, abs=0.01)
    memory = page["memory"]
    assert memory["parameters"] == memory["gradient"] == 4 * count
    assert memory["optimizer and algorithm"] == pytest.approx(8 * count, rel=1e-6)
    assert page["checkpoint"]["bytes"] == pytest.approx(4 * 12 * count, rel=1e-6)
    assert page["checkpoint"]["files"] == 5
    # A ring: everyone sends to both neighbours, all of them elsewhere.
    assert page["round"]["messages"] == page["round"]["between_ranks"] == 8
    assert page["round"]["message_bytes"] == 4 * count
    # Two slots to send from, and two for each of both neighbours; states that large are not copied.
    assert memory["messages"] == 6 * 4 * count and memory["checkpoint writer"] == 0
    assert "policy.activation_checkpointing" in page["doubts"][0] and not page["fits"]


def test_what_does_not_fit_a_gpu_is_named(plan):
    page = plan(SEVEN, "--ranks", 4, "--gpu-memory", 80, "--memory", 200, status=1)
    assert len(page["doubts"]) == 1 and "its GPU needs" in page["doubts"][0]
    assert page["host_bytes"] + page["gpu_bytes"] == page["total_bytes"]
    page = plan(SEVEN, "--ranks", 4, "--gpu-memory", 200, "--memory", 80, status=1)
    assert len(page["doubts"]) == 1 and "a rank needs" in page["doubts"][0]
    assert plan(SEVEN, "--ranks", 4, "--gpu-memory", 200, "--memory", 200)["fits"]


def test_a_lone_agent_sends_nothing_and_its_mean_is_its_own(plan):
    memory = plan(SMALL, agents=1)["memory"]
    assert memory["messages"] == memory["measuring"] == 0


def test_what_a_loss_or_late_messages_add_to_a_state_is_counted(plan):
    bare = plan(SMALL)["checkpoint"]["bytes"]
    late = plan(SMALL, **{"staleness.kind": "seeded", "staleness.max_age": 3})
    one = late["memory"]["gradient"]
    assert late["checkpoint"]["bytes"] - bare == pytest.approx(4 * 3 * one, rel=1e-3)


SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def test_more_agents_on_a_rank_take_more_and_send_less_between_ranks(plan):
    apart, together = plan(SMALL, "--ranks", 4), plan(SMALL)
    assert together["agents_of_a_rank"] == 4 and together["round"]["between_ranks"] == 0
    assert together["memory"]["parameters"] == 4 * apart["memory"]["parameters"]
    assert together["memory"]["gradient"] == apart["memory"]["gradient"]
    assert together["checkpoint"]["bytes"] == apart["checkpoint"]["bytes"]


def test_what_saves_memory_is_counted(plan):
    usual = plan(SMALL)["memory"]
    again = plan(SMALL, **{"policy.activation_checkpointing": "true"})["memory"]
    # Of four layers; one alone takes more while it is computed again, when nothing in it is spared.
    assert again["activations"] < 0.65 * usual["activations"]
    narrow = plan(SMALL, **{"policy.dtype": "bfloat16"})["memory"]
    assert narrow["activations"] < 0.8 * usual["activations"]
    assert narrow["parameters"] == usual["parameters"] == 4 * 2 * narrow["narrow"]
    longer = plan(SMALL, "--tokens", 1536)["memory"]
    assert longer["activations"] == pytest.approx(2 * usual["activations"], rel=0.05)
    tracking = plan(SMALL, **{"algorithm.kind": "exact_diffusion", "optim.kind": "sgd",
                    "optim.lr": 1})
    assert tracking["memory"]["optimizer and algorithm"] == pytest.approx(
        tracking["memory"]["parameters"], rel=1e-6
    )
    local = plan(SMALL, **{"algorithm.kind": "local"})
    assert local["round"] == {"messages": 0, "bytes": 0, "message_bytes": 0, "between_ranks": 0}


@pytest.mark.parametrize("spared", [True, False])
def test_activations_are_what_autograd_keeps(spared):
    import torch
    import transformers

    from decdpo.policies.lm.forward.attention import Masked, Part
    from decdpo.policies.lm.forward.packed import PackedLM
    from decdpo.policies.lm.forward.packing import Segment
    from decdpo.policies.lm.forward.remade import Kept, Remade, remembering, spare
    from decdpo.policies.lm.memory import activation_bytes, meta_model

    config = transformers.LlamaConfig(**SMALL, vocab_size=64)
    planned = activation_bytes(meta_model(config), 200, torch.float32, spared=spared)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    scorer = PackedLM(module)
    segment = Segment(0, 120, 160, 200)
    mask = segment.mask(torch.float32, torch.device("cpu"))
    owned = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def keep(tensor):
        found = spare(tensor) if spared else Kept(tensor)
        for source in found.sources if isinstance(found, Remade) else (found,):
            storage = source.tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                kept[storage.data_ptr()] = (storage.nbytes(), source)
        return tensor

    ids = torch.zeros(1, 200, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with remembering() if spared else nullcontext(), hooks:
        scorer.module.base_model(
            input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False,
            segments=Masked([Part(slice(0, 200), (slice(0, 200),), mask)]),
        )  # fmt: skip
    found = sum(nbytes for nbytes, _ in kept.values())
    assert planned == pytest.approx(found, rel=0.1)


def test_a_small_policy_is_planned_and_what_is_unknown_is_asked_for(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text("[agents]\ncount = 6\n")
    assert main(["plan", str(config), "--ranks", "3"]) == 0
    said = capsys.readouterr().out
    assert "6 agents on 3 ranks, at most 2 on one; loglinear" in said
    assert "12 messages" in said and "4 files" in said
    config.write_text("")
    assert main(["plan", str(config)]) == 2
    assert "set agents.count" in capsys.readouterr().err
    config.write_text("[agents]\ncount = 6\n")
    assert main(["plan", str(config), "--ranks", "0"]) == 2
    assert "--ranks is 0" in capsys.readouterr().err
    assert main(["plan", str(config), "--memory", "0"]) == 2


ADAPTED = {"policy.lora.rank": 16, "policy.dtype": "bfloat16"}


def test_adapters_of_a_large_model_fit_and_their_messages_are_small(plan):
    whole = plan(SEVEN, "--ranks", 4, "--memory", 80, status=1)
    page = plan(SEVEN, "--ranks", 4, "--gpu-memory", 80, "--memory", 80, agents=8, **ADAPTED)
    memory, layers = page["memory"], 32
    # r (d + k) of four square layers and three of the MLP.
    values = layers * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert page["parameters"] == values and page["fits"]
    assert memory["frozen model"] == 2 * whole["parameters"]
    assert memory["parameters"] == 2 * 4 * values and memory["gradient"] == 4 * values
    assert memory["narrow"] == 2 * values and "reference" not in memory
    assert page["round"]["message_bytes"] == 4 * values
    # Neither weight gradients nor what they would need are kept.
    assert memory["head"] < whole["memory"]["head"]
    more = {**ADAPTED, "policy.cache_reference": "false"}
    assert plan(SEVEN, "--ranks", 4, agents=8, **more)["total_bytes"] == page["total_bytes"]


@pytest.mark.parametrize(("mix", "travels"), [("freeze_a", 0.53), ("core", 0.001434), ("svd", 1.0)])
def test_a_rule_of_mixing_decides_what_a_message_has(plan, mix, travels):
    both = plan(SEVEN, "--ranks", 4, **ADAPTED)["round"]["message_bytes"]
    rule = {**ADAPTED, "policy.lora.mix": mix, "optim.kind": "sgd", "optim.lr": 1}
    found = plan(SEVEN, "--ranks", 4, **rule)["round"]["message_bytes"]
    assert found == pytest.approx(travels * both, rel=0.1)


def test_a_personal_head_takes_memory_and_does_not_travel(plan):
    shared = plan(SEVEN, "--ranks", 4, "--gpu-memory", 80, **ADAPTED)
    own = {**ADAPTED, "policy.personal.head": "full", "loss.kind": "fedpdpo"}
    page = plan(SEVEN, "--ranks", 4, "--gpu-memory", 80, **own)
    assert page["parameters"] - shared["parameters"] == 32000 * 4096
    assert page["round"]["message_bytes"] == shared["round"]["message_bytes"]
    assert page["total_bytes"] > shared["total_bytes"] + 4 * 4 * 32000 * 4096
