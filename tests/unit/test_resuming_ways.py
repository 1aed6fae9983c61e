"""Every way of resuming: a checkpoint of format 1, a moved folder, another graph, a longer run.

Other numbers of ranks are those of ``tests/mpi/test_mpi_runs.py``. The fixture was written by two
processes with decdpo 0.1.0, and is never to be written anew: later versions must read it as it is.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from shells import CONFIG, Shell, shards_of_users
from small_models import write_model

from decdpo import train
from decdpo.checkpoint.inspect import verify

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
SAVED = {
    "0": "2e49a28918e7140b8c702c3695ff1c2be5c276ba1621ca2afe07581bafb90241",
    "1": "366d32d939711d30975c7fe697ca95028b38405d235aa585b9f62c85fadfddc4",
    "2": "1f69d7d014bdfdf972480d0b6722d9eb15d0794ba904322e6445cbac683d4745",
}
"""The SHA-256 of the parameters of every agent after round 6."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Return a shell in a folder that holds the run of format 1, moved there with its shards."""
    shutil.copytree(FORMAT_1, tmp_path / "moved")
    return Shell(tmp_path / "moved")


def parameters(shell: Shell, run: str = "run") -> dict[str, str]:
    return {agent: found["x"] for agent, found in shell.digests(run).items()}


def test_a_checkpoint_of_format_1_is_whole_and_its_models_are_the_same(shell: Shell) -> None:
    for folder in (shell.folder / "run/checkpoints").iterdir():
        assert verify(folder) == []
    assert parameters(shell) == SAVED


def test_a_run_of_format_1_is_evaluated_exported_and_goes_on(shell: Shell) -> None:
    found = json.loads(shell("evaluate", "run", "--json"))
    assert found["round"] == 6 and found["pairs"] == 9
    shell("export", "run", "--out", "model")
    shell("resume", "run", "--set", "run.rounds=8")
    assert "resuming after round 6 of 8" in shell.said and "is not used" not in shell.said
    lines = (shell.folder / "run/metrics.jsonl").read_text().splitlines()
    rounds = [json.loads(line)["round"] for line in lines]
    assert rounds == list(range(9))
    assert parameters(shell).keys() == SAVED.keys()
    assert not set(parameters(shell).values()) & set(SAVED.values())


def test_the_older_generation_of_format_1_is_found_where_the_newer_is_damaged(
    shell: Shell,
) -> None:
    part = shell.folder / "run/checkpoints/round_000006/part_0001.h5"
    part.write_bytes(part.read_bytes()[:-1])
    shell("resume", "run")
    assert "checkpoint of round 6 is not used" in shell.said
    assert "resuming after round 4 of 6" in shell.said
    assert verify(shell.folder / "run/checkpoints/round_000006") == []


def test_a_run_whose_folder_and_shards_were_moved_apart_goes_on(shell: Shell) -> None:
    (shell.folder / "run").rename(shell.folder.parent / "elsewhere")
    run = shell.folder.parent / "elsewhere"
    (shell.folder / "shards").rename(shell.folder / "pairs")
    shell("resume", run, "--set", "run.rounds=7", status=2)
    assert "shards" in shell.said
    shell("resume", run, "--set", "run.rounds=7", "--set", "data.shards=pairs")
    assert "resuming after round 6 of 7" in shell.said


def test_the_same_agents_go_on_on_another_graph_if_that_is_allowed(shell: Shell) -> None:
    other = ("--set", "topology.graph=star", "--set", "run.rounds=8")
    shell("resume", "run", *other, status=3)
    assert "topology.graph: saved ring, now star" in shell.said
    assert "pass --allow topology" in shell.said and parameters(shell) == SAVED
    shell("resume", "run", *other, "--allow", "topology")
    assert json.loads((shell.folder / "run/run.json").read_text())["start"]["graph"] == "star"
    # It is that graph's run from now on.
    shell("resume", "run", "--set", "run.rounds=9")
    assert "resuming after round 8 of 9" in shell.said
    shell("resume", "run", "--set", "topology.graph=ring", "--set", "run.rounds=10", status=3)


@pytest.mark.parametrize("words, named", [
    (("--set", "agents.count=2"), "agents"), (("--set", "policy.dimension=32"), "policy.dimension"),
    (("--set", "algorithm.kind=dsgd"), "algorithm.kind"),
])  # fmt: skip
def test_what_is_another_run_is_refused_by_name(
    shell: Shell, words: tuple[str, ...], named: str
) -> None:
    shell("resume", "run", *words, status=3)
    assert named in shell.said and parameters(shell) == SAVED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_language_model_goes_on_from_a_kill_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    shell = Shell(tmp_path)
    write_model(tmp_path / "model", layers=2)
    shards_of_users(tmp_path, 6)
    shell.write("c.toml", CONFIG.format(shards="users").replace("dimension = 4096", ""))
    words = ["policy.kind=causal_lm", "policy.model=model", f"policy.dtype={dtype}"]
    words += ["policy.tokens_at_once=400", "policy.max_length=64", "optim.kind=adamw"]
    words += ["agents.count=3", "data.batch_size=3", "run.rounds=5", "checkpoint.every=2"]
    words += ["log.every=1", "log.heldout_pairs=1"]
    usual, packed = train.local_steps, []

    def copied(run: Any, t: int, active: Any) -> None:
        if t == 3:
            # What is on disk in the middle of a round is what a kill leaves.
            run.store.flush()
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")
        usual(run, t, active)
        first = run.agents[0]
        rows = first.sampler.rows(t, run.batch_size)
        packed.append(len(run.objective.policy.parts(first.data, rows)) < len(rows))

    monkeypatch.setattr(train, "local_steps", copied)
    shell("train", "c.toml", "--out", "whole", *(w for pair in words for w in ("--set", pair)))
    monkeypatch.undo()
    assert all(packed), "every batch has a row of several pairs"
    assert [record["round"] for record in shell.metrics("killed")] == [0, 1, 2, 3]
    shell("resume", "killed")
    assert "resuming after round 2 of 5" in shell.said
    assert shell.digests("killed") == shell.digests("whole")
    assert shell.metrics("killed") == shell.metrics("whole")
