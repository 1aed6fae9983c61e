"""What is measured by default: everything of a small model, a little of a language model."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from adapted import PAIRS, encoded, near_start
from torch.utils.flop_counter import FlopCounterMode

from decdpo.cli import main
from decdpo.metrics.measures import FEWEST, MOST, Measures, choose_measures
from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.adapters.personal import PersonalOptions
from decdpo.policies.lm.work import Sizes, Work, step_work
from decdpo.policies.tokens import TokenizedPairs, Truncation


def chosen(**settings):
    usual = {"costly": True, "rounds": 200, "round_pairs": 16, "most_heldout": 50}
    return choose_measures(**{**usual, **settings})


@pytest.mark.parametrize("rounds", [1, 3, 7000])
def test_a_small_model_is_measured_on_everything_after_every_round(rounds):
    found = chosen(costly=False, rounds=rounds)
    assert found == Measures(1, 0, 64, True)
    assert chosen(costly=False, every=3, heldout_pairs=2, gradient_pairs=0) == Measures(3, 2, 0)


def share(found, rounds, round_pairs, heldout):
    """Return the pairs scored to measure, over those that training amounts to."""
    held = min(found.heldout_pairs or heldout, heldout)
    records = -(-rounds // found.every)
    return (held + found.training_pairs + records * 2 * held) / (3 * rounds * round_pairs)


@pytest.mark.parametrize("round_pairs", [4, 16, 64, 1000])
@pytest.mark.parametrize("rounds", [60, 200, 5000])
@pytest.mark.parametrize("heldout", [3, 50, 10**4])
def test_a_language_model_is_measured_within_5_percent(rounds, round_pairs, heldout):
    found = chosen(rounds=rounds, round_pairs=round_pairs, most_heldout=heldout)
    assert share(found, rounds, round_pairs, heldout) < 0.05
    assert FEWEST <= found.heldout_pairs <= MOST and not found.gradient
    # The room that there is, is used.
    if found.every > 1:
        more = Measures(-(-found.every // 2), found.heldout_pairs, found.training_pairs, False)
        assert share(more, rounds, round_pairs, heldout) > 0.02


def test_what_is_asked_for_is_measured():
    assert chosen(every=1).every == 1 and not chosen(every=1).gradient
    assert chosen(heldout_pairs=0).heldout_pairs == 0
    found = chosen(gradient_pairs=0, heldout_pairs=5, every=2)
    assert found == Measures(2, 5, 0, True)
    assert chosen(gradient_pairs=32, rounds=10**4).every > chosen(rounds=10**4).every


def test_what_is_left_out_is_said():
    words = chosen(round_pairs=4, rounds=60, most_heldout=300).words(300)
    assert "a seeded 8 of 300 held-out pairs" in words and "no gradient norm" in words
    assert "every round" in Measures(1).words(7) and "all 7" in Measures(1).words(7)


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_a_language_model_says_what_it_measures(tmp_path, capfd, make_model):
    rows = [
        {"prompt": f"Q{i} ", "chosen": "yes, " * (1 + i % 3), "rejected": "no"} for i in range(80)
    ]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = str(tmp_path / "shards")
    words = ["--agents", "2", "--holdout", "0.5", "--out", shards]
    assert main(["shard", str(source), *words]) == 0
    config = tmp_path / "run.toml"
    config.write_text(
        f'[data]\nshards = "{shards}"\nbatch_size = 3\n[run]\nrounds = 60\n'
        f'[policy]\nkind = "causal_lm"\nmodel = "{make_model()}"\n'
    )
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 0
    said = capfd.readouterr().err
    assert "a seeded 8 of 20 held-out pairs of an agent; no gradient norm" in said
    records = rows_of(tmp_path, "run")
    assert [record["round"] for record in records] == [0, 60]
    assert [record["heldout/pairs"] for record in records] == [16, 16]
    assert all(record["gradient_norm"] is None for record in records)
    system = records[-1]["system"]
    # A prompt is 4 bytes and the start, an answer ends with one token more than its bytes.
    assert system["tokens_per_second"] > 20 * system["pairs_per_second"] > 0
    assert system["peak_memory_bytes"] > 10**8 and "mfu" not in system
    asked = ["--set", "log.every=30", "--set", "log.gradient_pairs=4"]
    assert main(["train", str(config), "--out", str(tmp_path / "all"), *asked]) == 0
    records = rows_of(tmp_path, "all")
    assert [record["round"] for record in records] == [0, 30, 60]
    assert all(record["gradient_norm"] > 0 for record in records)


def test_tokens_are_counted_as_two_rows_and_work_as_the_model_does_it():
    edges = np.array([[0, 5, 8, 12], [12, 13, 15, 15]])
    tokens = TokenizedPairs(np.zeros(15, np.int32), edges, Truncation(2, 9))
    sizes = Sizes(body=100, head=10, layers=0, width=0)
    both = step_work(sizes, tokens, np.arange(2), shared=True)
    # 5 + 3 + 4 and 1 + 2 + 0; the last token of an answer is scored, but not fed.
    assert both == Work(2, 2 * 5 + 7 + 2 + 2, 10 + 2, 6.0 * (100 * 12 + 10 * 9))
    apart = step_work(sizes, tokens, np.arange(2), shared=False)
    assert apart.physical == apart.logical == both.logical
    assert both + both == step_work(sizes, tokens, np.array([0, 1, 1, 0]), shared=True)
    attention = Sizes(body=0, head=0, layers=2, width=3)
    one = step_work(attention, tokens, np.array([1]), shared=False)
    assert one.flops == 3 * 4 * 2 * 3 * (9 + 1) / 2


LOW = PersonalOptions(head="low_rank", head_rank=3, reward=True, bottleneck=5)
FULL = PersonalOptions(head="full")


@pytest.mark.parametrize(
    "lora, personal", [(False, None), (True, None), (True, LOW), (True, FULL)]
)
def test_products_are_counted_as_torch_counts_them(make_model, lora, personal):
    options = LoraOptions(3, 6.0) if lora else None
    folder = make_model(layers=2)
    policy = CausalLM(folder, max_length=64, lora=options, personal=personal)
    data, params, rows = encoded(policy), near_start(policy, 0.0), np.arange(len(PAIRS))
    with FlopCounterMode(display=False) as counter:
        scored = policy.forward(params, data, rows)
        scored.backward({name: torch.ones(len(rows)) for name in scored.scores.leaves()})
    done = counter.get_flop_counts()["Global"]
    products = sum(done.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    sizes = dataclasses.replace(Sizes.of(policy.scorer.module), layers=0)
    work = step_work(sizes, data.tokens, rows, shared=True)
    first = policy.bind(params).model.layers[0].self_attn
    # Nothing before the first frozen layers is trained: no gradient of what they read is formed.
    begins = (first.q_proj, first.k_proj, first.v_proj) if lora else ()
    spared = sum(part.weight.numel() + part.lora_A.numel() for part in begins)
    assert work.flops - 2 * work.physical * spared == products
