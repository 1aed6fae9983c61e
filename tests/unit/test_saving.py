"""When a run saves: by the time, before its job ends, when a file asks; never what it computes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shells import Shell

from decdpo.checkpoint.interval import LARGEST_SHARE, interval
from decdpo.comm.local import LocalWorld
from decdpo.config import parse
from decdpo.errors import ConfigError
from decdpo.session import saving
from decdpo.session.saving import Checkpoints, Clock, job_end, saves

HOUR = 3600.0


@pytest.mark.parametrize("write, mtbf", [(1.0, HOUR), (20.0, 24 * HOUR), (3.0, 600.0)])
def test_the_interval_makes_the_expected_time_least(write: float, mtbf: float) -> None:
    """Daly's exact time for work done in pieces, failures being exponential: it is minimized."""
    pieces = np.geomspace(write / 10, mtbf * 3, 20000)
    cost = (np.exp((pieces + write) / mtbf) - 1) / pieces
    best = pieces[cost.argmin()]
    assert interval(write, mtbf) == pytest.approx(max(best, write / LARGEST_SHARE), rel=0.02)


@pytest.mark.parametrize("write", [1e-4, 0.1, 30.0, 4000.0])
def test_writing_never_takes_more_than_its_share(write: float) -> None:
    for mtbf in (60.0, HOUR, 1000 * HOUR):
        assert write / interval(write, mtbf) <= LARGEST_SHARE * (1 + 1e-12)


class Times:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_a_save_is_due_once_in_an_interval() -> None:
    times = Times()
    clock = Clock(HOUR, lambda: 0.5, now=times)
    saved = []
    for round in range(1000):
        times.now += 1.0
        if clock.round_is_due():
            saved.append(round)
            clock.save_begins()
    wanted = interval(0.5, HOUR)
    assert set(np.diff(saved)) <= {math.ceil(wanted), math.floor(wanted)}
    assert len(saved) > 10


def test_the_last_save_before_the_job_ends_is_on_disk_in_time() -> None:
    times = Times()
    end, write, round = times.now + 500.0, 2.0, 7.0
    clock = Clock(1000 * HOUR, lambda: write, end, now=times)
    saved = []
    while times.now < end:
        times.now += round
        if clock.round_is_due():
            times.now += round  # all processes come to the round in which the slowest is
            clock.save_begins()
            saved.append(times.now + write)
    assert len(saved) == 1
    assert end - 60.0 < saved[0] < end


@pytest.mark.parametrize("text", ["", "never", "-5", "0", "inf", "nan"])
def test_an_end_of_the_job_that_is_none_is_none(text: str) -> None:
    assert job_end({"SLURM_JOB_END_TIME": text}) is None
    assert job_end({}) is None
    assert job_end({"SLURM_JOB_END_TIME": "1790000000"}) == 1.79e9


def test_every_takes_a_number_or_auto_and_nothing_else() -> None:
    assert parse('[checkpoint]\nevery = "auto"').checkpoint.by_time
    section = parse("[checkpoint]\nevery = 7").checkpoint
    assert (section.rounds, section.by_time) == (7, False)
    for wrong in ('"atuo"', '""', "2.5", "true"):
        with pytest.raises(ConfigError, match="checkpoint.every") as caught:
            parse(f"[checkpoint]\nevery = {wrong}")
        assert "an integer or 'auto'" in str(caught.value)
    with pytest.raises(ConfigError, match="mtbf_hours = 5 is not used"):
        parse("[checkpoint]\nmtbf_hours = 5")
    text = parse('[checkpoint]\nevery = "auto"\nmtbf_hours = 5').to_toml()
    assert parse(text).checkpoint.mtbf_hours == 5.0 and parse(text).checkpoint.by_time


def test_a_start_says_how_much_a_checkpoint_is() -> None:
    section = parse("").checkpoint
    said = saves(section, files=5, bytes=12_340_000, write=0.1)
    assert said == "a checkpoint of 5 files, 12.34 MB, every 50"
    by_time = parse('[checkpoint]\nevery = "auto"').checkpoint
    said = saves(by_time, files=5, bytes=12_340_000, write=0.1)
    assert "about every 131 s" in said and "every 24 h" in said


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Return a shell in a folder with the shard of one agent, and a configuration."""
    shell = Shell(tmp_path)
    shell.make_shards(1)
    shell.write(
        "run.toml",
        '[run]\nrounds = 6\n[data]\nshards = "shards"\n[policy]\ndimension = 64\n'
        "[checkpoint]\nevery = 0\nkeep = 20\n",
    )
    return shell


def rounds(shell: Shell, run: str) -> list[int]:
    folders = (shell.folder / run / "checkpoints").glob("round_*")
    return sorted(int(folder.name[6:]) for folder in folders)


def test_a_file_called_save_asks_for_one_checkpoint_and_is_answered(shell: Shell) -> None:
    shell("train", "run.toml", "--out", "plain")
    assert rounds(shell, "plain") == [0, 6]
    (shell.folder / "asked").mkdir()
    asking = shell.write("asked/save", "")
    shell("train", "run.toml", "--out", "asked")
    assert not asking.exists()
    assert "round 1 is saved, as asked/save asked" in shell.said
    assert "a checkpoint of 2 files, 260 bytes, at the end" in " ".join(shell.said.split())
    assert rounds(shell, "asked") == [0, 1, 6]
    assert shell.digests("asked") == shell.digests("plain")


class SlowStore:
    """A store whose writes take until it is flushed."""

    write_seconds = None
    writing = True

    def save(self, round: int, states: object, extra: object) -> None:
        """Begin to write."""

    def poll(self) -> None:
        """Raise nothing."""

    def flush(self) -> None:
        """End all writes."""
        self.writing = False


def test_the_answer_names_the_round_that_was_saved_for_it_however_slow_the_disk(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    store: Any = SlowStore()
    section = parse("[checkpoint]\nevery = 0").checkpoint
    checkpoints = Checkpoints(store, LocalWorld(1), section, tmp_path, last=3, say=said.append)
    (tmp_path / "save").touch()
    saved = []
    for done in (1, 2, 3):
        checkpoints.poll()
        if checkpoints.due(done):
            checkpoints.save(done, [])
            saved.append(done)
    assert said == [] and (tmp_path / "save").exists()
    checkpoints.flush()
    assert saved == [1, 3]
    assert said == [f"round 1 is saved, as {tmp_path / 'save'} asked"]
    assert not (tmp_path / "save").exists()


def test_every_start_records_its_job_and_how_often_it_was_put_back(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("train", "run.toml", "--out", "run")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    shell("resume", "run", "--set", "run.rounds=7")
    first, second = json.loads((shell.folder / "run/run.json").read_text())["starts"]
    assert "job" not in first and (second["job"], second["restart"]) == ("41", "3")


def test_a_request_that_cannot_be_removed_is_answered_once(shell: Shell) -> None:
    (shell.folder / "run/save").mkdir(parents=True)
    shell("train", "run.toml", "--out", "run")
    assert "run/save cannot be removed" in shell.said and "ignored from now on" in shell.said
    assert rounds(shell, "run") == [0, 1, 6]


def test_what_is_saved_when_never_changes_the_bits(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("train", "run.toml", "--out", "plain")
    auto = ("--set", "checkpoint.every=auto")
    shell("train", "run.toml", "--out", "rarely", *auto)
    assert rounds(shell, "rarely") == [0, 6]
    monkeypatch.setattr(saving, "interval", lambda write, between_failures: 0.0)
    shell("train", "run.toml", "--out", "often", *auto)
    assert rounds(shell, "often") == list(range(7))
    assert shell.digests("often") == shell.digests("rarely") == shell.digests("plain")


def test_a_job_that_ends_soon_saves_by_the_time(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(saving.time.time()) + 5))
    shell("train", "run.toml", "--out", "run", "--set", "checkpoint.every=auto")
    assert rounds(shell, "run") == [0, 1, 6]
    shell("train", "run.toml", "--out", "by-rounds", "--set", "checkpoint.every=4")
    assert rounds(shell, "by-rounds") == [0, 4, 6]
