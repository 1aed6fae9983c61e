"""``decdpo status``: what the files of a run folder say, at any moment of its life."""

import contextlib
import json
import subprocess
import sys

import pytest
from limits import HANG

from decdpo.cli import main
from decdpo.files import Lock, is_locked


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a finished run of 4 rounds, and stay in it."""
    with contextlib.chdir(tmp_path):
        assert main(["synthesize", "choices", "--agents", "3", "--pairs", "8", "--out", "s"]) == 0
        words = ["data.shards=s", "policy.features=columns", "run.rounds=4", "checkpoint.every=2"]
        words += ["optim.kind=adamw"]
        options = [word for pair in words for word in ("--set", pair)]
        (tmp_path / "c.toml").write_text("")
        assert main(["train", "c.toml", "--out", "r", *options]) == 0
        yield tmp_path


def status(capsys, *runs, code=0):
    capsys.readouterr()
    assert main(["status", *runs, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_finished_run(folder, capsys):
    (found,) = status(capsys, "r")
    assert (found["state"], found["round"], found["rounds"], found["go_on"]) == ("done", 4, 4, "")
    assert (found["agents"], found["processes"], found["starts"]) == (3, 1, 1)
    assert found["saved_round"] == 4 and found["seconds_left"] is None
    last = json.loads((folder / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["loss"] == last["loss"]
    records = [json.loads(t) for t in (folder / "r" / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(record["system"]["elapsed_seconds"] for record in records[1:])
    assert found["seconds_per_round"] == pytest.approx(seconds / 4)
    assert main(["status", "r"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("r: done, round 4 of 4\n") and "3 agents in 1 process on" in said


def test_a_run_that_trains_is_locked_and_looking_does_not_keep_its_job_out(folder, capsys):
    config = folder / "r" / "config.toml"
    config.write_text(config.read_text().replace("rounds = 4", "rounds = 40"))
    with Lock(folder / "r", "job is training"):
        (found,) = status(capsys, "r")
        assert is_locked(folder / "r")
    assert found["state"] == "training" and found["go_on"] == ""
    assert found["seconds_left"] == pytest.approx(36 * found["seconds_per_round"])
    assert is_locked(folder / "r") is False


def test_a_run_that_was_asked_to_stop_and_one_that_was_killed(folder, capsys):
    config = folder / "r" / "config.toml"
    config.write_text(config.read_text().replace("rounds = 4", "rounds = 40"))
    (found,) = status(capsys, "r")
    assert (found["state"], found["go_on"]) == ("broken off", "decdpo resume r")
    (folder / "r" / "halt").touch()
    (found,) = status(capsys, "r")
    assert (found["state"], found["go_on"]) == ("stopped", "rm r/halt && decdpo resume r")


def test_folders_that_are_no_runs_are_named_beside_those_that_are(folder, capsys):
    (folder / "d").mkdir()
    capsys.readouterr()
    assert main(["status", "d", "r", "--json"]) == 3
    out, err = capsys.readouterr()
    assert [run["run"] for run in json.loads(out)] == ["r"]
    assert "d is not a run folder" in err
    (folder / "r" / "run.json").write_text("[1]")
    assert main(["status", "r"]) == 2
    assert "is not the record of a run" in capsys.readouterr().err


HEAVY = ("torch", "matplotlib", "scipy", "h5py", "mpi4py", "transformers")
WITHOUT = (
    (0, "--help"), (0, "train --help"), (0, "config"), (0, "status r"), (0, "status r --json"),
    (2, "train typing.toml --out x"), (2, "train broken.toml --out x"), (2, "train c.toml --out x"),
    (2, "train c.toml --out x --set data.shards=s --set optim.lr=-1"), (2, "plan typing.toml"),
    (3, "resume s"), (2, "resume r --set run.rouds=5"), (2, "trian c.toml"),
)  # fmt: skip
"""Exit status and words of commands that read small files alone, or find a mistake before more."""


def test_small_files_and_mistakes_need_no_large_library(folder):
    (folder / "typing.toml").write_text("[run]\nrouds = 3\n")
    (folder / "broken.toml").write_text("[run\n")
    (folder / "c.toml").write_text('[data]\nshards = "nowhere"\n')
    program = f"""
import json, sys
from decdpo.cli import main
found = []
for _, words in {WITHOUT}:
    try:
        code = main(words.split())
    except SystemExit as end:
        code = end.code
    found.append([code, words, [name for name in {HEAVY} if name in sys.modules]])
sys.stderr.write("found " + json.dumps(found))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=HANG
    )
    found = json.loads(ended.stderr.rpartition("found ")[2])
    assert found == [[code, words, []] for code, words in WITHOUT]
