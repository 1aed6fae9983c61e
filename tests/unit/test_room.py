"""The folder of a new run, and the checkpoints of another run in it."""

import json
import os
import shutil

import pytest

from decdpo.checkpoint.format import MANIFEST, Manifest, _seal
from decdpo.cli import main
from decdpo.errors import ConfigError
from decdpo.session.room import require_room


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that trains ``rounds`` rounds into the folder ``run``, or another."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"p{k}", "chosen": "good", "rejected": "bad"} for k in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["shard", "rows.jsonl", "--agents", "2", "--holdout", "0.2", "--out", "s"]) == 0
    text = '[data]\nshards = "s"\n[policy]\ndimension = 64\n[checkpoint]\nevery = 1\nkeep = 9\n'
    (tmp_path / "a.toml").write_text(text)

    def train(rounds, out="run", status=0):
        assert main(["train", "a.toml", "--out", out, "--set", f"run.rounds={rounds}"]) == status
        return tmp_path / out

    return train


FOREIGN = ("metrics.jsonl", "run.json", "summary.txt", "curves.png", "notes.md", "data", "ages/x",
           "checkpoints/model.bin", "checkpoints/round_000001/model.bin", "trace/mine.json",
           "checkpoints/round_000000/model.bin", ".git/config", ".hidden")  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_foreign_files_is_refused_and_left_as_it_was(run, tmp_path, capsys, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    run(1, status=2)
    said = capsys.readouterr().err
    assert f"run is not empty and no run: it holds {name.split('/')[0]}" in said
    assert path.read_text() == "mine" and not (tmp_path / "run" / "config.toml").exists()


HARMLESS = ("slurm-17.out", "job-17_3.err", "train.o123", "train.e123.4", "mpirun.log", ".nfs0001",
            "a.toml", "train.slurm", "error.txt", ".lock")  # fmt: skip


def test_logs_scripts_and_configurations_may_lie_there(run, tmp_path):
    (tmp_path / "run").mkdir()
    for name in HARMLESS:
        (tmp_path / "run" / name).touch()
    run(1)
    assert all((tmp_path / "run" / name).exists() for name in HARMLESS)


@pytest.mark.parametrize("left", ["lock", "writing", "saved", "config", "trace"])
def test_a_start_that_was_killed_before_its_first_checkpoint_can_be_made_again(run, left):
    folder = run(2, "whole")
    new = folder.with_name("run")
    (new / "checkpoints").mkdir(parents=True)
    (new / ".lock").write_text("0" * 32)
    first = folder / "checkpoints" / "round_000000"
    if left == "writing":
        shutil.copytree(first, new / "checkpoints" / ".writing-round_000000")
        (new / "checkpoints" / ".writing-round_000000" / MANIFEST).unlink()
    elif left == "saved":
        shutil.copytree(first, new / "checkpoints" / "round_000000")
    elif left == "config":
        (new / ".config.toml.4711.tmp").touch()
        (new / ".run.json.4711.tmp").touch()
    elif left == "trace":
        (new / "trace").mkdir()
        (new / "trace" / "process_0000.json").touch()
    run(2)
    assert main(["resume", "run", "--set", "run.rounds=3"]) == 0


def test_checkpoints_without_a_configuration_are_not_written_over(run, capsys):
    folder = run(3)
    for name in os.listdir(folder):
        if name not in ("checkpoints", ".lock"):
            (folder / name).unlink()
    run(1, status=2)
    assert "checkpoints of an earlier run, but no config.toml" in capsys.readouterr().err
    assert len(os.listdir(folder / "checkpoints")) == 4


def test_checkpoints_of_another_run_are_never_taken_nor_removed(run, capsys, tmp_path):
    other = run(5, "other")
    folder = run(2)
    for round in (0, 4, 5):
        name = f"round_{round:06d}"
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
        shutil.copytree(other / "checkpoints" / name, folder / "checkpoints" / name)
    assert main(["evaluate", "run", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["round"] == 2
    assert "checkpoint of round 5 is not used" in captured.err and "another run" in captured.err
    assert main(["export", "run", "--out", "x"]) == 0
    assert "after round 2" in capsys.readouterr().err
    assert main(["evaluate", "run", "--round", "4"]) == 3
    assert main(["resume", "run", "--set", "run.rounds=3"]) == 0
    assert "resuming after round 2" in capsys.readouterr().err
    assert {Manifest.read(p).run for p in (folder / "checkpoints").glob("round_00000[0-3]")} == {
        json.loads((f / "run.json").read_text())["id"] for f in (folder, other)
    }


def test_a_run_of_an_earlier_version_goes_on(run):
    folder = run(2)
    facts = json.loads((folder / "run.json").read_text())
    del facts["id"]
    (folder / "run.json").write_text(json.dumps(facts))
    for path in (folder / "checkpoints").glob("round_*/manifest.json"):
        content = json.loads(path.read_text())
        del content["sha256"], content["run"]
        path.write_bytes(_seal(content))
    assert main(["evaluate", "run"]) == 0
    assert main(["resume", "run", "--set", "run.rounds=3"]) == 0
    assert json.loads((folder / "run.json").read_text())["id"] == ""


@pytest.mark.parametrize("text", [None, "", "[]", '{"id": 3}', '{"id": "x"}', "\udcff"])
def test_a_lost_run_json_takes_its_id_from_the_checkpoint(run, text, capsys):
    folder = run(2)
    id = json.loads((folder / "run.json").read_text())["id"]
    (folder / "run.json").unlink()
    if text is not None:
        (folder / "run.json").write_text(text, errors="surrogateescape")
    if text is not None:
        assert main(["evaluate", "run"]) == 2
        assert "run.json is not the record of a run" in capsys.readouterr().err
    assert main(["resume", "run", "--set", "run.rounds=3"]) == 0
    assert json.loads((folder / "run.json").read_text())["id"] == id
    kept = folder / "run.json.damaged"
    assert kept.exists() == ("run.json.damaged" in capsys.readouterr().err) == (text is not None)
    assert main(["evaluate", "run"]) == 0


def test_a_named_pipe_for_a_lock_does_not_hang(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / ".lock")
    run(1, status=2)
    assert "cannot lock the run folder" in capsys.readouterr().err


def test_a_new_folder_and_an_empty_one_are_free(tmp_path):
    require_room(tmp_path / "new")
    require_room(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        require_room(tmp_path)
