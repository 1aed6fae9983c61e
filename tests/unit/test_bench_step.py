"""``decdpo bench step`` and ``tools/bench_trl.py``: what they refuse, and that ours is measured."""

import argparse
import json

import bench_trl
import numpy as np
import pytest

from decdpo.commands.studies import bench, bench_step
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError, DataError
from decdpo.report.step_table import step_table

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")


def parse(*words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["step", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch", 0), "--batch is 0"),
        (("--max-length", -3), "--max-length is -3"),
        (("--pairs", 1), "--pairs is 1, fewer than --batch 2"),
        (("--limit", "nan"), "--limit is nan"),
        (("--with", "speed"), "'speed' is none of head"),
        (("--with", "head,packing"), "packing needs prefix"),
        (("--with", "head,head"), "twice"),
        (("--out", "/nowhere/x"), "--out /nowhere/x cannot be written"),
    ],
)
def test_bad_arguments_are_named(tmp_path, words, said):
    with pytest.raises(ConfigError, match=said):
        bench.run(parse(tmp_path, *words))


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        bench.run(parse(tmp_path / "none"))
    with pytest.raises(DataError, match="no index.json"):
        bench.run(parse(tmp_path, "--data", tmp_path))


@pytest.fixture
def shards(tmp_path):
    from decdpo.cli import main

    rows = [{"prompt": f"Q{i} ", "chosen": "yes, " * (1 + i), "rejected": "no"} for i in range(6)]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--agents", "1", "--holdout", "0", "--out", str(tmp_path / "shards")]
    assert main(["shard", str(source), *words]) == 0
    return tmp_path / "shards"


def specification(model, shards, ways, **more):
    return {
        "model": str(model), "data": str(shards), "with": ways, "batch": 2, "pairs": 6, "steps": 2,
        "max_length": 100, "tokens_at_once": 400, "threads": 1, "device": "cpu", "lr": 0.01, **more,
    }  # fmt: skip


def test_every_ingredient_takes_the_same_steps(make_model, shards):
    from decdpo.benchmarks.step import measure

    model = make_model()
    fp32 = [way for way in bench_step.ways_of("head,prefix,packing,reference,checkpointing")]
    found = [measure(specification(model, shards, way)) for way in fp32]
    for record in found:
        assert record["losses"][0] == pytest.approx(np.log(2), abs=1e-6)
        assert record["losses"] == pytest.approx(found[0]["losses"], rel=1e-5)
        assert record["cpu_seconds"] > 0 and record["peak_memory_bytes"] > 10**8
    assert found[0]["losses"][0] != found[0]["losses"][1]
    assert found[2]["physical_tokens"] < found[1]["physical_tokens"]


def test_adapters_take_the_same_steps_by_every_way(make_model, shards):
    from decdpo.benchmarks.step import Bench, measure

    model = make_model()
    ways = bench_step.ways_of("lora,head,prefix,packing,reference")[1:]
    found = [measure(specification(model, shards, way, lr=0.1)) for way in ways]
    for record in found:
        assert record["losses"][0] == pytest.approx(np.log(2), abs=1e-6)
        assert record["losses"] == pytest.approx(found[0]["losses"], rel=1e-5)
    assert found[0]["losses"][0] != found[0]["losses"][1]
    bench = Bench(specification(model, shards, ways[-1]))
    own = bench.policy.scorer.module.model.layers[0].self_attn
    projections = (own.q_proj, own.k_proj, own.v_proj, own.o_proj)
    assert bench.params.data.numel() == sum(8 * sum(part.weight.shape) for part in projections)


def test_the_table_says_what_was_measured_and_what_failed(make_model, shards, capsys, tmp_path):
    out = tmp_path / "page.json"
    words = ("--data", shards, "--steps", 1, "--pairs", 4, "--max-length", 100, "--with", "head",
             "--out", out)  # fmt: skip
    assert bench.run(parse(make_model(), *words)) == 0
    printed = capsys.readouterr().out
    assert "+ head" in printed and "where the time of + head goes" in printed
    page = json.loads(out.read_text())
    assert [way["with"] for way in page["ways"]] == [[], ["head"]]
    page["ways"][1] = {"with": ["head"], "failed": "out of memory"}
    assert "out of memory" in step_table(page)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "hh"), "is not NAME=SHARDS:TOKENS"),
        (("--data", "hh=x:many"), "is not NAME=SHARDS:TOKENS"),
        (("--batch", "8,2"), "ascending"),
        (("--cases", "fp16"), "'fp16' is none of fp32"),
        (("--steps", "0"), "must be 1 or more"),
        (("--pairs", "4"), "fewer than a batch of 8"),
        (("--model", "/nowhere"), "has no config.json"),
        (("--env", str(bench_trl.ROOT / "venv")), "lies in the repository"),
        (("--json", "/nowhere/x.json"), "there is no folder /nowhere"),
    ],
)
def test_bad_arguments_of_the_comparison_are_named(words, said, capsys):
    usual = () if words[0] == "--data" else ("--data", "hh=shards:256")
    with pytest.raises(SystemExit):
        bench_trl.parse([*usual, *words])
    assert said in capsys.readouterr().err


def test_both_are_given_the_same_tokens(make_model, shards, tmp_path):
    out = tmp_path / "tokens.npz"
    model = make_model()
    means = bench_trl.tokens_of(model, shards, 40, 4, out)
    held = np.load(out)
    assert len(held["edges"]) == 4 and held["edges"][-1, -1] == len(held["ids"])
    sizes = np.diff(held["edges"], axis=1)
    assert (sizes[:, 0] + sizes[:, 1:].max(axis=1) <= 40).all()
    assert means == pytest.approx(sizes.mean(axis=0).tolist())
    with pytest.raises(SystemExit, match="has 0 pairs"):
        bench_trl.tokens_of(model, shards, 10**4, 4, out)
    assert ShardIndex.load(shards).num_agents == 1


def test_a_contestant_takes_a_step_for_each_line(make_model, shards, tmp_path):
    ways = ["head", "prefix", "reference"]
    spec = specification(make_model(), shards, ways, turns=True, steps=3)
    command = ["-m", "decdpo.benchmarks.step", json.dumps(spec), tmp_path / "record.json"]
    ours = bench_trl.Contestant([bench_trl.sys.executable, *command], 1)
    ours.answer("ready")
    steps = [ours.step() for _ in range(3)]
    ours.end()
    assert [step["pairs"] for step in steps] == [2, 2, 2]
    assert json.loads((tmp_path / "record.json").read_text())["losses"] == [
        step["loss"] for step in steps
    ]


def test_ratios_are_of_step_and_memory():
    cell = {
        "data": "hh", "case": "fp32", "batch": 2, "ratio_step": 4.0, "ratio_memory": 0.5,
        "largest_difference_of_losses": 1e-6,
        "trl": {"seconds": 8.0, "peak_memory_bytes": 4e9, "losses": [0.69]},
        "ours": {"seconds": 2.0, "peak_memory_bytes": 2e9},
    }  # fmt: skip
    lines = bench_trl.table([cell, {**cell, "case": "LoRA fp32", "ratio_step": 1.5}]).splitlines()
    assert "4.00" in lines[1] and "0.50" in lines[1]
    assert lines[2].startswith("hh      LoRA fp32") and "1.50" in lines[2]


class Recorded:
    """Stands for a contestant that takes a second a step."""

    commands: list[list[str]] = []

    def __init__(self, command, threads):
        self.commands.append([str(word) for word in command])

    def answer(self, key):
        return {key: True}

    def step(self):
        return {"loss": 0.5, "cpu": 1.0, "wall": 1.0, "peak": 10**9}

    def end(self):
        pass


def test_both_train_the_same_adapters(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_trl, "Contestant", Recorded)
    monkeypatch.setattr(Recorded, "commands", [])
    args = bench_trl.parse(["--data", "hh=shards:256", "--steps", "2"])
    shared = {"tokens": str(tmp_path / "tokens.npz"), "batch": 2, "max_length": 256}
    for case in ("LoRA fp32", "fp32"):
        cell = {"data": "hh", "case": case, "batch": 2, "shared": shared}
        found = bench_trl.compare(args, tmp_path / "python", cell)
        assert found["ratio_step"] == found["ratio_memory"] == 1.0
    (trl, ours), (whole, also) = Recorded.commands[:2], Recorded.commands[2:]
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert json.loads(trl[-1])["lora"] == {"rank": 8, "alpha": 16.0, "targets": targets}
    assert "lora" in json.loads(ours[-2])["with"]
    assert json.loads(whole[-1])["lora"] is None and "lora" not in json.loads(also[-2])["with"]
