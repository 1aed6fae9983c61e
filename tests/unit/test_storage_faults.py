"""Storage that fails at any operation of a save, of the records, of the run's files.

Whatever fails, the newest checkpoint that is on disk is whole and is found again, and what is said
names the fault and the file. Run as a program, this file prints the table of all of it.
"""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from faulty_storage import FAULTS, Storage, faulty
from shells import Shell
from torch import Tensor

from decdpo.checkpoint.format import committed
from decdpo.checkpoint.inspect import verify
from decdpo.checkpoint.store import CheckpointStore
from decdpo.cli import main as decdpo
from decdpo.comm.local import LocalWorld
from decdpo.errors import DecdpoError

WORDS = {
    "ENOSPC": "No space left on device",
    "EDQUOT": "Disk quota exceeded",
    "EIO": "Input/output error",
    "EROFS": "Read-only file system",
}


@dataclass
class State:
    x: Tensor
    steps: int


def states(round: int) -> dict[int, State]:
    return {a: State(torch.full((40_000,), float(10 * round + a)), round) for a in range(3)}


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, world=LocalWorld(3), keep=1, identity={}, warn=lambda line: None)


def prepared(folder: Path) -> CheckpointStore:
    """Return a store that has saved round 1, and keeps one checkpoint."""
    store = store_in(folder)
    store.save(1, states(1))
    store.flush()
    return store


def operations_of_a_save(folder: Path) -> list[tuple[str, str]]:
    store = prepared(folder)
    with faulty(Storage(folder)) as storage:
        store.save(2, states(2))
        store.flush()
    return storage.operations


def test_a_save_does_what_can_fail(tmp_path: Path) -> None:
    kinds = {kind for kind, _ in operations_of_a_save(tmp_path)}
    assert kinds == {"open", "write", "truncate", "fsync", "rename", "mkdir"}
    places = {path.split("/")[-1] for _, path in operations_of_a_save(tmp_path / "again")}
    assert places >= {"part_0000.h5", "manifest.json", ".writing-round_000002"}


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_in_a_save_a_whole_generation_is_found(
    fault: str, lasting: bool, tmp_path: Path
) -> None:
    if fault == "slow" and lasting:
        lasting = False
    count = len(operations_of_a_save(tmp_path / "count"))
    every = range(0, count, 1 if fault == "ENOSPC" and not lasting else 4)
    for at in every:
        folder = tmp_path / str(at)
        store = prepared(folder)
        failed = None
        struck = Storage(folder, fault, lambda number, kind, path: number == at, lasting)
        with faulty(struck):
            try:
                store.save(2, states(2))
                store.flush()
            except DecdpoError as error:
                failed = error
        assert struck.struck, at
        assert all(verify(found) == [] for found in committed(folder).values()), struck.struck
        rounds = list(committed(folder))
        if failed is not None:
            assert WORDS[fault] in failed.what and failed.remedy, failed
            assert str(folder) in failed.what and failed.exit_code != 0
        elif fault in ("slow", "short"):
            assert rounds == [2], struck.struck
        found = states(0)
        done = store_in(folder).load(found)
        assert done == max(rounds) and torch.equal(found[2].x, states(done)[2].x)
        if failed is None:
            assert done == 2
        # A storage that works again takes the next one.
        again = store_in(folder)
        again.load(states(0))
        again.save(3, states(3))
        again.flush()
        assert list(committed(folder))[-1] == 3


PLACES = {
    "checkpoint": lambda kind, path: "checkpoints/.writing-round_000004" in path,
    "metrics": lambda kind, path: path == "metrics.jsonl",
    "run.json": lambda kind, path: path.startswith(".run.json"),
    "config.toml": lambda kind, path: path.startswith(".config.toml"),
    "summary": lambda kind, path: path == "summary.txt",
    "lock": lambda kind, path: path == ".lock",
}


def shell_with_shards(folder: Path) -> Shell:
    shell = Shell(folder)
    shell.make_shards(2)
    shell.write(
        "run.toml",
        '[run]\nrounds = 6\n[data]\nshards = "shards"\n[policy]\ndimension = 64\n'
        "[checkpoint]\nevery = 2\n",
    )
    return shell


def run_with(shell: Shell, fault: str, place: str) -> tuple[int, str, str]:
    """Train on a storage that fails once at ``place``; return the run, its status, its message."""
    name = f"{fault}-{place}"
    said = io.StringIO()
    out = shell.folder / name
    storage = Storage(
        out, fault, lambda number, kind, path: kind != "open" and PLACES[place](kind, path)
    )
    with contextlib.chdir(shell.folder), contextlib.redirect_stderr(said), faulty(storage):
        status = decdpo(["train", "run.toml", "--out", name])
    assert storage.struck, f"nothing was done at {place}"
    lines = [line for line in said.getvalue().splitlines() if "error" in line]
    return status, lines[0] if lines else "", said.getvalue()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = shell_with_shards(tmp_path_factory.mktemp("faults"))
    shell("train", "run.toml", "--out", "healthy")
    return shell


@pytest.mark.parametrize("fault, place", [
    *(("ENOSPC", place) for place in PLACES), ("EIO", "checkpoint"), ("EIO", "metrics"),
    ("EROFS", "run.json"), ("slow", "checkpoint"), ("short", "checkpoint"), ("short", "metrics"),
])  # fmt: skip
def test_a_run_names_what_its_storage_refuses(shell: Shell, fault: str, place: str) -> None:
    status, message, said = run_with(shell, fault, place)
    run = f"{fault}-{place}"
    if fault in ("slow", "short"):
        assert status == 0 and not message, said
        return
    assert status not in (0, 1) and WORDS[fault] in message and run in message, said
    assert "Traceback" not in said and "remedy" in said
    if place in ("checkpoint", "metrics", "summary"):
        # What was saved is whole, and the run goes on to its end from there.
        assert list(committed(shell.folder / run / "checkpoints"))
        shell("resume", run)
        assert shell.digests(run) == shell.digests("healthy")


def print_table() -> None:
    """Print fault, place, exit status and message, for every place and fault."""
    with tempfile.TemporaryDirectory() as folder:
        shell = shell_with_shards(Path(folder))
        for place in PLACES:
            for fault in ("ENOSPC", "EIO", "EROFS", "slow", "short"):
                status, message, _ = run_with(shell, fault, place)
                print(f"| {fault} | {place} | {status} | {message or 'the run is done'} |")


if __name__ == "__main__":
    print_table()
