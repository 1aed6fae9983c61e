"""Runs of a tiny language model: what is refused, what is said, what is the same run."""

import json
import shutil

import numpy as np
import pytest
import torch

from decdpo.cli import main
from decdpo.data.shard import Pair, PreferenceShard
from decdpo.params.flat import FlatParams
from decdpo.policies.causal_lm import CausalLM

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")


class Runs:
    """A folder to shard and train in, by calls of the command line within this process."""

    def __init__(self, folder, capfd):
        self.folder, self._capfd, self.output = folder, capfd, ""

    def __call__(self, *words, status=0):
        """Run one command; returns what it printed, errors included."""
        self._capfd.readouterr()
        found = main([str(word) for word in words])
        self.output, errors = self._capfd.readouterr()
        printed = self.output + errors
        assert found == status, printed
        assert "Traceback" not in printed
        return printed

    def shard(self, rows, agents=1):
        """Shard JSON rows; returns the folder."""
        source, out = self.folder / "source.jsonl", self.folder / "shards"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self("shard", source, "--agents", agents, "--holdout", 0, "--force", "--out", out)
        return out

    def train(self, model, *settings, status=0, out="run"):
        """Train two rounds without exchange; returns what was printed."""
        chosen = (
            f"data.shards={self.folder / 'shards'}", "data.batch_size=2", "policy.kind=causal_lm",
            f"policy.model={model}", "algorithm.kind=local", "run.rounds=2", "optim.kind=sgd",
            "optim.lr=0.01", *settings,
        )  # fmt: skip
        (self.folder / "empty.toml").write_text("")
        sets = [word for setting in chosen for word in ("--set", setting)]
        return self("train", self.folder / "empty.toml", "--out", self.folder / out, *sets,
                    status=status)  # fmt: skip


@pytest.fixture
def runs(tmp_path, capfd):
    return Runs(tmp_path, capfd)


def chats(count=4, system=()):
    rows = []
    for i in range(count):
        prompt = [{"role": "system", "content": "be kind"}] if i in system else []
        prompt += [{"role": "user", "content": f"Q{i}"}]
        rows.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": f"yes {i}"}],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
        )
    return rows


def plain(*answers):
    return [{"prompt": f"Q{i} ", "chosen": a, "rejected": b} for i, (a, b) in enumerate(answers)]


def test_a_template_that_refuses_a_row_is_one_error(runs, make_model):
    runs.shard(chats(system=(3,)))
    printed = runs.train(make_model(template="refusing"), status=2)
    assert "refuses source row 4 (1 of 4 pairs): \"System role not supported\"" in printed
    assert "merge it into the first user turn" in printed
    assert "refuses source row 1 (4 of 4 pairs)" in runs.train(
        make_model(template="broken"), status=2, out="other"
    )
    runs.train(make_model(template="refusing"), "policy.chat_template=none", out="third")


def test_a_run_does_not_go_on_with_another_tokenizer(runs, make_model):
    runs.shard(chats())
    model = make_model()
    runs.train(model)
    other = make_model("other", "chatml")
    shutil.copy(other / "tokenizer_config.json", model)
    printed = runs("resume", runs.folder / "run", "--set", "run.rounds=4", status=3)
    assert "is of another run" in printed and "tokenizer: saved" in printed
    printed = runs("evaluate", runs.folder / "run", status=3)
    assert "tokenizer: saved" in printed and "--set policy.model=FOLDER" in printed
    # Another folder with the same tokenizer is the same run.
    moved = make_model("moved")
    words = ["--set", f"policy.model={moved}", "--set", "run.rounds=3"]
    assert "done" in runs("resume", runs.folder / "run", *words)


def test_a_run_does_not_go_on_with_another_configuration(runs, make_model):
    runs.shard(chats())
    model = make_model()
    runs.train(model)
    path = model / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "transformers_version": "9", "dtype": "float32"}))
    assert "done" in runs("resume", runs.folder / "run", "--set", "run.rounds=3")
    path.write_text(json.dumps({**told, "rms_norm_eps": 0.1}))
    printed = runs("resume", runs.folder / "run", "--set", "run.rounds=4", status=3)
    assert "is of another run" in printed and "model_config: saved" in printed
    assert "model_config: saved" in runs("evaluate", runs.folder / "run", status=3)


def test_a_run_that_did_not_save_its_tokenizer_goes_on(runs, make_model, monkeypatch):
    from decdpo.session import identity as module

    runs.shard(chats())
    now, later = module.identity, ("policy.eos", "policy.line_break")
    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "identity", {})
        patch.setattr(
            module,
            "identity",
            lambda config: {k: v for k, v in now(config).items() if k not in later},
        )
        runs.train(make_model())
    printed = runs("resume", runs.folder / "run", "--set", "run.rounds=3")
    assert "saved before runs kept their model_config, tokenizer, which is not compared" in printed
    printed = runs("resume", runs.folder / "run", "--set", "run.rounds=4")
    assert "not compared" not in printed
    words = ["--set", "run.rounds=5", "--set", "policy.eos=<|im_end|>"]
    assert "policy.eos: saved" in runs("resume", runs.folder / "run", *words, status=3)


def test_pairs_that_teach_nothing_are_counted_and_refused_if_all_are(runs, make_model):
    runs.shard(plain(("a", "b"), ("c", "c "), ("d", "e")))
    printed = runs.train(make_model(template="chatml"))
    assert "1 of 3 pairs have answers with equal tokens: they teach nothing" in printed
    runs.shard(plain(("a", "a "), ("c", "c "), ("d", "d ")))
    printed = runs.train(make_model(template="chatml"), status=2, out="other")
    assert "3 of 3 pairs have answers with equal tokens" in printed
    assert "the answers of all 3 training pairs are equal to the policy" in printed


def test_the_log_linear_policy_counts_them_too(runs):
    runs.shard(plain(("yes", "Yes"), ("a", "b")))
    (runs.folder / "empty.toml").write_text("")
    printed = runs(
        "train", runs.folder / "empty.toml", "--out", runs.folder / "one",
        "--set", f"data.shards={runs.folder / 'shards'}", "--set", "run.rounds=1",
        "--set", "algorithm.kind=local", "--set", "policy.dimension=64",
    )  # fmt: skip
    assert "1 of 2 pairs have answers with equal features: they teach nothing" in printed


def test_notes_at_the_start_add_up_over_agents(runs, make_model):
    runs.shard(chats(), agents=2)
    printed = runs.train(make_model(template="chatml", context=128))
    assert printed.count("8 of 8 answers end twice") == 1
    assert printed.count("max_length = 128, not 512") == 1
    printed = runs.train(make_model(template="chatml"), "policy.eos=<|im_end|>", out="other")
    assert "end twice" not in printed
    printed = runs.train(make_model(context=128), "policy.max_length=129", status=2, out="third")
    assert "max_length = 129, but" in printed and "or leave it out" in printed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_saved_in_any_type_are_trained_in_float32(make_model, dtype):
    from decdpo.losses.dpo import DPO
    from decdpo.params.optim import AdamW
    from decdpo.policies.objective import Objective

    policy = CausalLM(make_model(dtype=dtype))
    assert policy.layout.dtype == torch.float32
    data = policy.encode(PreferenceShard.from_pairs([Pair("hi", " yes", " no")] * 2))
    params, start = FlatParams(policy.layout, policy.initial()), policy.initial()
    optimizer = AdamW()
    state = optimizer.init(params.data)
    moved = torch.zeros(len(start), dtype=torch.bool)
    for _ in range(6):
        Objective(policy, DPO()).gradient(params, data, np.arange(2))
        moved |= params.grad != 0
        optimizer.step(params.data, state, params.grad, 1e-5)
    changed = (params.data != start)[moved].double().mean().item()
    assert changed > 0.95


def test_bfloat16_computes_and_half_precision_is_refused(runs, make_model):
    runs.shard(chats())
    assert "done" in runs.train(make_model(), "policy.dtype=bfloat16")
    printed = runs.train(make_model(), "policy.dtype=float16", status=2, out="other")
    assert "policy.dtype = 'float16'" in printed and "'bfloat16'" in printed


def test_a_quantised_folder_is_refused(runs, make_model):
    runs.shard(chats())
    model = make_model()
    told = json.loads((model / "config.json").read_text())
    told["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (model / "config.json").write_text(json.dumps(told))
    assert "is quantised" in runs.train(model, status=2)


def test_a_language_model_needs_a_folder(runs):
    runs.shard(chats())
    assert "policy.model is empty" in runs.train("", status=2)


def test_log_probabilities_are_those_of_plain_transformers(make_model):
    from transformers import AutoModelForCausalLM

    folder = make_model()
    policy = CausalLM(folder)
    pairs = [Pair("Is it? ", "yes", "no, no"), Pair("", "a", "b c")]
    data = policy.encode(PreferenceShard.from_pairs(pairs))
    params = FlatParams(policy.layout, policy.initial())
    found = policy.forward(params, data, np.arange(2), need_grad=False).scores
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logp(prompt, answer):
        before = policy.tokenizer(prompt).input_ids
        ids = policy.tokenizer(prompt + answer).input_ids + [2]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        each = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        return each[len(before) - 1 :].sum().item()

    assert found.chosen.tolist() == pytest.approx([logp(p.prompt, p.chosen) for p in pairs])
    assert found.rejected.tolist() == pytest.approx([logp(p.prompt, p.rejected) for p in pairs])


def test_dropout_of_a_configuration_inside_another_is_off(tmp_path, make_model):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "attention_dropout": 0.5, "max_position_embeddings": 128, "sliding_window": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299,
        boi_token_index=298, eoi_token_index=297,
    )  # fmt: skip
    folder = make_model()
    for file in (*folder.glob("*.safetensors"), folder / "config.json"):
        file.unlink()
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    policy = CausalLM(folder, gradient_checkpointing=True)
    assert policy.max_length == 128 and "made for 128 tokens" in policy.notes[0]
    data = policy.encode(PreferenceShard.from_pairs([Pair("hi", " yes", " no")]))
    params, row = FlatParams(policy.layout, policy.initial()), np.arange(1)
    logps = policy.forward(params, data, row, need_grad=False).scores
    assert torch.equal(logps.chosen, logps.ref_chosen)
    assert policy._config.text_config.attention_dropout == 0.5


def test_tokens_shows_pairs_lengths_and_counts(runs, make_model):
    shards = runs.shard(chats(5), agents=2)
    model = make_model(template="chatml")
    printed = runs("tokens", shards, "--model", model, "--show", 1)
    assert "10 of 10 answers end twice" in printed and "5 pairs of 2 agents" in printed
    rows = [line for line in printed.splitlines() if line.split()[1:2] == ["scored"]]
    assert [row.split()[0] for row in rows] == ["chosen", "rejected"]
    assert rows[1].split(": ", 1)[1] == "'n' 'o' '<|im_end|>' '\\n' '</s>'"
    runs("tokens", shards, "--model", model, "--eos", "<|im_end|>", "--json", "--show", 9)
    told = json.loads(runs.output)
    assert told["counts"] == [] and len(told["shown"]) == 5
    assert told["lengths"]["rejected"] == dict.fromkeys(("min", "median", "90%", "99%", "max"), 3)
    assert told["shown"][0]["ids"]["rejected"][-1] == 4
    assert "5 pairs" not in runs("tokens", shards, "--model", model, "--agent", 1)
    assert "--agent 2" in runs("tokens", shards, "--model", model, "--agent", 2, status=2)
    assert "no config.json" in runs("tokens", shards, "--model", runs.folder, status=2)


def test_tokens_are_those_of_training(runs, make_model):
    shards, model = runs.shard(chats(3)), make_model(template="chatml")
    runs("tokens", shards, "--model", model, "--json", "--show", 3)
    told = json.loads(runs.output)
    data = CausalLM(model).encode(PreferenceShard.open(shards / "agent_0000.h5"))
    for row, shown in enumerate(told["shown"]):
        parts = [part.tolist() for part in data.tokens.parts(row)]
        assert parts == [shown["ids"][name] for name in ("prompt", "chosen", "rejected")]


def test_totals_are_of_all_agents_also_of_those_that_met_nothing(runs, make_model):
    rows = plain((" a", " b"), (" a", " a</s> more"), (" a", " c"), (" a", " d"))
    shards = runs.shard(rows, agents=2)
    printed = runs("tokens", shards, "--model", make_model())
    assert "  1 of 4 pairs have answers with equal tokens" in printed
    assert "  1 of 8 answers go on after" in printed and " 0 of " not in printed
