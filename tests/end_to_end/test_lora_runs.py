"""Runs that train adapters: kill and resume, export to PEFT and go on from it, what is refused."""

import json

import numpy as np
import pytest
import torch
from adapted import ADAPTED, shard_users, short_rows
from small_models import write_model

from decdpo.checkpoint.inspect import locate
from decdpo.checkpoint.parts import open_part
from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.names import MIX_RULES

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CONFIG = ADAPTED + """[optim]
kind = "sgd"
lr = 0.5
[log]
every = 1
heldout_pairs = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def lora(shell, folder):
    """Write run.toml: four agents with a few short pairs, and adapters of rank 2."""
    shards = shard_users(shell.folder, short_rows())
    return shell.write("run.toml", CONFIG.format(shards=shards, model=folder))


@pytest.mark.parametrize("mix", MIX_RULES)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(shell, lora, mix):
    rule = ["--set", f"policy.lora.mix={mix}"]
    shell("train", "run.toml", "--out", "whole", *rule)
    shell("train", "run.toml", "--out", "half", *rule, "--set", "run.rounds=2")
    shell("resume", "half", "--set", "run.rounds=4")
    assert shell.digests("half") == shell.digests("whole")
    assert shell.metrics("half") == shell.metrics("whole")
    first, *_, last = shell.metrics("whole")
    assert last["loss"] < first["loss"]
    if mix in ("factors", "svd"):
        assert 0 < last["lora/floor"] < last["lora/interference"] < 1
    else:
        assert "lora/interference" not in last


def factors_in(shell, policy, agents):
    """Return A and B of each agent's layers in ``r``, after round 2, in float64."""
    found = {}
    for path in sorted(locate(shell.folder / "r", 2).glob("part_*.h5")):
        with open_part(path) as reader:
            for agent in set(reader.agents) & set(agents):
                vector = reader.tensor(agent, "x").double()
                found[agent] = [factors.of(vector) for factors in policy.factors]
    return found


@pytest.mark.parametrize("mix", ["svd", "factors"])
def test_new_agents_begin_at_the_mean_that_the_run_mixes_by(shell, lora, folder, mix):
    rule = ["--set", f"policy.lora.mix={mix}", "--set", "topology.graph=complete"]
    few = ["--set", "agents.count=3", "--set", "run.rounds=2", "--set", "algorithm.local_steps=8"]
    shell("train", "run.toml", "--out", "r", *rule, *few)
    more = ["--set", "agents.count=4", "--allow", "agents.count"]
    shell("resume", "r", *more, "--set", "run.rounds=2")
    assert "agent 3 is new beside 3 that were saved" in shell.said
    policy = CausalLM(folder, max_length=64, lora=LoraOptions(2, 4.0, mix=mix))
    own = factors_in(shell, policy, range(4))
    missed, whole, off, apart = np.zeros(4)
    for layer in range(len(policy.factors)):
        pairs = [own[agent][layer] for agent in range(3)]
        mean = sum(b @ a for a, b in pairs) / 3
        of_factors = sum(b for _, b in pairs) / 3 @ sum(a for a, _ in pairs) / 3
        u, s, v = torch.linalg.svd(mean)
        new = own[3][layer][1] @ own[3][layer][0]
        expected = of_factors if mix == "factors" else (u[:, :2] * s[:2]) @ v[:2]
        off += float((new - expected).square().sum())
        apart += float((new - (mean if mix == "factors" else of_factors)).square().sum())
        missed += float((new - mean).square().sum())
        whole += float(mean.square().sum())
    assert off < 1e-3 * apart
    said = f"misses {100 * (missed / whole) ** 0.5:.2g}% of the mean of their products"
    assert (said in shell.said) == (mix == "factors")
    shell("resume", "r", "--set", "run.rounds=4")
    assert len(shell.metrics("r")[-1]["heldout/accuracy_by_agent"]) == 4
    shell("export", "r", "--out", "adapter")


def test_an_adapter_goes_to_peft_and_comes_back(shell, lora, folder):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra test)")
    from transformers import AutoModelForCausalLM

    shell("train", "run.toml", "--out", "r")
    shell("export", "r", "--out", "adapter")
    assert "AutoPeftModelForCausalLM" in (shell.folder / "adapter" / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(folder)
    wrapped = peft.PeftModel.from_pretrained(base, shell.folder / "adapter", is_trainable=True)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    wrapped.save_pretrained(shell.folder / "twice")
    on = shell.write("on.toml", lora.read_text().replace("rank = 2", 'adapter = "twice"'))
    shell("train", on, "--out", "s")
    # The reference is the adapter that the run began from.
    first = shell.metrics("s")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert shell.metrics("s")[-1]["loss"] < first["loss"]
    shell("export", "s", "--out", "again")
    described = json.loads((shell.folder / "again" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"]) == (2, 4.0)


def test_another_base_is_another_run(shell, lora, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shell("train", "run.toml", "--out", "r", "--set", "run.rounds=2")
    other = write_model(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    shell("resume", "r", "--set", f"policy.model={other}", status=3)
    assert "policy_digest: saved" in shell.said
    shell("resume", "r", "--set", "policy.lora.alpha=7", status=3)
    assert "policy.lora.alpha: saved 0.0, now 7.0" in shell.said


def test_a_personal_factor_is_exported_by_agent(shell, lora):
    rule = ["--set", "policy.lora.mix=share_a"]
    shell("train", "run.toml", "--out", "r", *rule)
    shell("export", "r", "--out", "m", status=2)
    assert "personal parameters" in shell.said and "--agent" in shell.said
    shell("export", "r", "--out", "m", "--agent", "1")
    assert (shell.folder / "m" / "adapter_model.safetensors").exists()
    assert shell("evaluate", "r", "--json")


REFUSED = {
    "rank = 0\nalpha = 4.0": "policy.lora.alpha is given, but policy.lora.rank = 0",
    'rank = 2\nadapter = "users"': "policy.lora.rank is given beside policy.lora.adapter",
    'adapter = "users"\nmix = "core"': "cannot begin from policy.lora.adapter",
    'rank = 2\nmix = "cores"': "policy.lora.mix = 'cores' is not known (did you mean 'core'?)",
    "rank = -1": "policy.lora.rank = -1 is too small",
    "ranks = 2": "policy.lora.ranks is not a key of [policy.lora] (did you mean 'rank'?)",
    'adapter = "users"': "adapter_config.json cannot be used",
    'adapter = "nowhere"': "policy.lora.adapter = 'nowhere' is nowhere",
    'rank = 2\ntargets = ["c_attn"]': "names no linear layer",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_is_one_error(shell, lora, text):
    shell.write("bad.toml", lora.read_text().replace("rank = 2", text))
    shell("train", "bad.toml", "--out", "r", status=2)
    assert REFUSED[text] in shell.said and "Traceback" not in shell.said


def test_a_section_that_is_none_is_one_error(shell, lora):
    shell("train", "run.toml", "--out", "r", "--set", "policy.lora=8", status=2)
    assert "policy.lora = 8 is not a section" in shell.said
