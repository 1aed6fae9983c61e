"""The run folder: locked where that can be, and told of at every start."""

import errno
import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from decdpo.errors import DataError, EnvironmentFault
from decdpo.files import Lock, naming
from decdpo.session import folder, record


def job(said: list[str]) -> Any:
    """Return a job of one process that notes what it says."""
    return SimpleNamespace(is_root=True, size=1, together=lambda action: action(), say=said.append)


def facts(number: int) -> dict[str, Any]:
    """Return what a start of two agents on one host leaves behind."""
    place = {"host": f"node{number}", "device": "cpu"}
    return {
        "command": f"decdpo resume run --set run.rounds={number}",
        "started": "2026-01-01T00:00:00+00:00",
        "first_round": number,
        "seed": 0,
        "processes": 1,
        "agents": {0: place, 1: place},
        "versions": {"torch": "2.11"},
        "names": {"optim.lr": "0.1"},
    }


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def test_every_start_is_kept_the_newest_last(tmp_path: Path) -> None:
    for number in range(3):
        record.record_start(tmp_path, facts(number))
    found = read(tmp_path)
    assert found["first_round"] == 2 and found["agents"]["1"] == {"host": "node2", "device": "cpu"}
    assert [start["first_round"] for start in found["starts"]] == [0, 1, 2]
    assert found["starts"][0]["hosts"] == ["node0"] and found["starts"][0]["devices"] == ["cpu"]
    assert found["starts"][1]["command"].endswith("run.rounds=1")
    assert found["starts"][0]["versions"] == {"torch": "2.11"}


def test_the_one_start_that_an_older_version_noted_is_kept(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(facts(0)))
    record.record_start(tmp_path, facts(7))
    assert [start["first_round"] for start in read(tmp_path)["starts"]] == [0, 7]


DAMAGED = ["", "[1]", '{"starts": 3}', '{"starts": [3]}', '{"agents": 1}', '{"id": "x"}']


@pytest.mark.parametrize("text", [*DAMAGED, '{"agents": {"0": {"host": 3}}}', "[" * 100_000])
def test_a_damaged_record_is_named_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for read_it in (record.run_id, lambda out: record.record_start(out, facts(1))):
        with pytest.raises(DataError, match="run.json is not the record of a run") as caught:
            read_it(tmp_path)
        assert caught.value.remedy
    assert (tmp_path / "run.json").read_text() == text


def test_a_run_without_a_record_has_no_id(tmp_path: Path) -> None:
    assert record.run_id(tmp_path) == "" == record.run_id(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{}")
    record.record_start(tmp_path, facts(1))
    assert [start["first_round"] for start in read(tmp_path)["starts"]] == [1]


def lock_with(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let every lock fail with this error of the system."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    lock_with(monkeypatch, code)
    said: list[str] = []
    with folder.locked(job(said), tmp_path):
        pass
    assert len(said) == 1 and str(tmp_path) in said[0] and "has no locks" in said[0]
    assert os.strerror(code) in said[0]


def test_a_lock_that_fails_otherwise_is_an_error_of_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_with(monkeypatch, errno.EIO)
    with pytest.raises(EnvironmentFault, match="cannot lock the run folder: .*Input/output error"):
        with folder.locked(job([]), tmp_path):
            pass


def test_a_full_disk_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        with naming("the run cannot go on", tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.what == f"the run cannot go on: {tmp_path}: No space left on device"
    assert "free some space" in caught.value.remedy
    with pytest.raises(BrokenPipeError):
        with naming("the run cannot go on", tmp_path):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class Spread:
    """One process of a job of two, which got ``token`` from the root."""

    size, rank, is_root = 2, 1, False

    def __init__(self, token: str) -> None:
        self.boot = SimpleNamespace(collect=lambda mine: {0: token, **mine})

    def together(self, action: Any) -> Any:
        """Do it."""
        return action()


def test_a_process_that_finds_another_folder_under_the_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SHOWS", 0.2)
    (tmp_path / ".lock").write_text("of an earlier job")
    with pytest.raises(EnvironmentFault, match="process 1 on .* does not see the run folder"):
        with folder.locked(cast(Any, Spread("new")), tmp_path):
            pass
    (tmp_path / ".lock").write_text("new")
    with folder.locked(cast(Any, Spread("new")), tmp_path):
        pass


def test_a_second_job_leaves_what_the_first_has_written(tmp_path: Path) -> None:
    first = Lock(tmp_path, "job is training")
    first.write("token")
    with pytest.raises(EnvironmentFault, match="another job is training in"):
        Lock(tmp_path, "job is training")
    assert (tmp_path / ".lock").read_text() == "token"
    first.close()
    Lock(tmp_path, "job is training").close()
