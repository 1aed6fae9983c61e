"""Reference values beside the shards, through the commands: what runs find there, what they add."""

import json
import os

import pytest
from shells import Shell

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")

PAIRS = 12
BASE = ("policy.kind=causal_lm", "algorithm.kind=local", "data.batch_size=2", "run.rounds=2")


class Runs(Shell):
    """A shell with a small source of pairs."""

    def shards(self, *options, out="shards"):
        rows = [{"prompt": f"Q{i}: ", "chosen": f"yes {i}", "rejected": "no"} for i in range(PAIRS)]
        self.write("pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self("shard", "pairs.jsonl", "--out", out, "--force", *options)
        return self

    def train(self, model, out, *settings, status=0):
        self.write("empty.toml", "")
        chosen = ("data.shards=shards", f"policy.model={model}", *BASE, *settings)
        words = [word for setting in chosen for word in ("--set", setting)]
        self("train", "empty.toml", "--out", out, *words, status=status)

    def score(self, model, *options):
        """Score the shards that are there; return what was done."""
        words = ("--reference", model, "--out", "shards", "--json")
        done = json.loads(self("shard", *words, *options))
        return done["pairs"], done["scored"]

    @property
    def store(self):
        return self.folder / "shards" / "reference.cache"


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


def test_shards_are_scored_beforehand_and_runs_add_nothing(runs, make_model):
    model = make_model()
    runs.shards("--agents", 2, "--reference", model)
    assert "12 pairs scored, 0 known before" in runs.said
    before = runs.store.read_bytes()
    runs.train(model, "a")
    runs.train(model, "b", "optim.lr=0.5", "loss.beta=1.0", "loss.kind=ipo", "run.seed=3")
    runs("evaluate", "a")
    assert runs.store.read_bytes() == before
    assert runs.score(model) == (12, 0)


def test_a_run_that_finds_its_values_is_the_run_that_computes_them(runs, make_model):
    model = make_model()
    runs.shards("--agents", 2)
    runs.train(model, "computed")
    runs.train(model, "found")
    runs.train(model, "online", "policy.cache_reference=false")
    runs.store.unlink()
    runs.train(model, "again", "run.rounds=1")
    runs("resume", "again", "--set", "run.rounds=2")
    assert runs.digests("found") == runs.digests("computed") == runs.digests("online")
    assert runs.digests("again") == runs.digests("computed")
    assert runs.metrics("again")[-1] == runs.metrics("computed")[-1]


def test_another_hold_out_or_deal_finds_what_is_there(runs, make_model):
    model = make_model()
    runs.shards("--agents", 2, "--holdout", 0, "--reference", model)
    runs.shards("--agents", 3, "--holdout", 0.25, "--seed", 5)
    assert runs.score(model) == (12, 0)
    # Another configuration, other tokens or another precision have other values.
    assert runs.score(make_model("other", context=128)) == (12, 12)
    # Cut so short, two pairs have the tokens of others.
    assert runs.score(model, "--set", "policy.max_length=8") == (12, 10)
    assert runs.score(model, "--set", "policy.dtype=bfloat16") == (12, 12)
    assert runs.score(model) == (12, 0)


def test_what_scoring_would_ignore_is_refused(runs, make_model):
    runs.shards("--agents", 2)
    runs("shard", "--out", "shards", status=2)
    assert "no SOURCE" in runs.said
    runs("shard", "--out", "shards", "--reference", "m", "--agents", 3, status=2)
    assert "--agents would be ignored" in runs.said
    runs("shard", "--out", "shards", "--reference", "m", "--set", "optim.lr=1", status=2)
    assert "optim.lr" in runs.said and "ignored" in runs.said
    runs("shard", "pairs.jsonl", "--agents", 2, "--out", "o", "--set", "policy.dtype=bfloat16",
         status=2)  # fmt: skip
    assert "without --reference" in runs.said
    runs("shard", "--out", "nothing", "--reference", make_model(), status=2)
    assert "nothing" in runs.said


def test_a_folder_that_cannot_keep_values_is_an_error_beforehand_and_a_line_in_a_run(
    runs, make_model, monkeypatch
):
    from decdpo.data import cache

    def refuse(*_):
        raise OSError(30, os.strerror(30))

    runs.shards("--agents", 2)
    monkeypatch.setattr(cache.os, "pwrite", refuse)
    runs("shard", "--reference", make_model(), "--out", "shards", status=2)
    assert "not kept" in runs.said and "writable" in runs.said
    runs.train(make_model(), "a")
    assert runs.said.count("reference values are not kept for the next run") == 1


def test_a_run_is_known_by_the_digest_of_its_policy(runs, make_model, monkeypatch):
    from decdpo.policies.lm.weights import WholeModel

    runs.shards("--agents", 2)
    runs.train(make_model(), "a")
    manifest = sorted((runs.folder / "a" / "checkpoints").glob("*/manifest.json"))[-1]
    assert len(json.loads(manifest.read_text())["identity"]["policy_digest"]) == 16
    # A frozen base is in no vector: nothing else would tell.
    monkeypatch.setattr(WholeModel, "_digest", lambda self, module: "0" * 64)
    for words in (("resume", "a", "--set", "run.rounds=3"), ("evaluate", "a")):
        runs(*words, status=3)
        assert "policy_digest: saved" in runs.said
