"""What a run folder says of its run: its configuration, run.json with every start, what is saved.

It needs no model and no tensor, so that commands which read small files alone answer at once.
"""

import json
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from decdpo import __version__
from decdpo.checkpoint.format import committed
from decdpo.config import Config, load
from decdpo.config.options import listing, nearest
from decdpo.config.places import find_paths
from decdpo.errors import CheckpointError, DataError
from decdpo.files import checked, read_checked, reason, replacing

JOB = {"job": "SLURM_JOB_ID", "restart": "SLURM_RESTART_COUNT"}
"""What is recorded of a job of the queue, and the variables that say it."""

SAID = "said"
"""Stands in the lock's file once a process of this job has said what is saved."""


def read_config(folder: Path, overrides: list[str], *, reading: bool = False) -> Config:
    """Return the configuration of a run folder with ``overrides`` applied.

    reading : for a run that is not trained any more, see ``config.load``.

    Raises ``CheckpointError`` if it is not a run folder.
    """
    path = folder / "config.toml"
    if not path.is_file():
        what = f"there is no {folder.absolute()}"
        if folder.is_dir():
            what = "it has no config.toml (killed before its first checkpoint?)"
        raise CheckpointError(f"{folder} is not a run folder: {what}", other_runs(folder))
    return load(path, overrides, reading=reading)


def other_runs(folder: Path) -> str:
    """Return which runs there are where ``folder`` is not one."""
    inside, names = folder, _runs_in(folder)
    if not names:
        inside, names = folder.absolute().parent, _runs_in(folder.absolute().parent)
    close = "" if folder.is_dir() else nearest(folder.name, names)
    made = f"give a folder that `decdpo train --out` made{close}"
    return f"{made}: {listing(inside, names, 'run')}"


def _runs_in(folder: Path) -> list[str]:
    try:
        return [path.parent.name for path in folder.glob("*/config.toml")]
    except OSError:
        return []


def read_run(
    folder: Path, overrides: list[str], say: Callable[[str], None], *, training: bool = False
) -> Config:
    """Return the configuration of a run folder, its paths found wherever decdpo is run.

    say : names paths that are not where the configuration says. training : whether what only
    training needs is sought, too.

    Raises ``CheckpointError`` if it is not a run folder, ``ConfigError`` if a path leads nowhere.
    """
    config = read_config(folder, overrides, reading=not training)
    return find_paths(config, folder / "config.toml", say, training=training)


@dataclass(frozen=True)
class Place:
    """Where an agent was trained."""

    host: str
    device: str


@dataclass(frozen=True)
class Record:
    """What is read again of run.json.

    id : of the run; empty if it is of an earlier version. starts : every start, the newest last;
    None if an earlier version kept the newest alone. agents : of that one.
    """

    id: Annotated[str, Meta(pattern="^([0-9a-f]{32})?$")] = ""
    starts: list[dict[str, Any]] | None = None
    agents: dict[str, Place] = field(default_factory=dict)


def read_record(out: Path) -> tuple[Record, dict[str, Any]]:
    """Return what ``run.json`` of the run in ``out`` says, and all that it holds.

    Both are empty if there is none. Raises ``DataError`` if it is damaged.
    """
    path = out / "run.json"
    try:
        content = read_checked(path, dict[str, Any])
        return checked(content, Record), content
    except (FileNotFoundError, NotADirectoryError):
        return Record(), {}
    except (OSError, ValueError) as fault:
        raise DataError(
            f"{path} is not the record of a run: {reason(fault)}",
            "restore it from a copy, or move it away: a run without one is that of its newest "
            "checkpoint",
        ) from None


def move_damaged(out: Path, say: Callable[[str], None]) -> None:
    """Move a damaged ``run.json`` to ``run.json.damaged``, so that the run can go on without it.

    say : called with a line that says so, once it is done.
    """
    try:
        read_record(out)
    except DataError as fault:
        path = out / "run.json"
        path.replace(path.with_name("run.json.damaged"))
        say(
            f"{fault.what}; it is kept as run.json.damaged, and the run is that of its newest "
            "checkpoint"
        )


def run_id(out: Path) -> str:
    """Return the id of the run in ``out``; empty if it has none, being of an earlier version.

    Raises ``DataError`` if its record is damaged.
    """
    return read_record(out)[0].id


def record_start(out: Path, facts: Mapping[str, Any]) -> None:
    """Write ``run.json``: the ``facts`` of this start, and the list of all starts, newest last."""
    record, content = read_record(out)
    # Earlier versions kept the newest start alone.
    alone = [_start(content)] if record.agents else []
    starts = [*(alone if record.starts is None else record.starts), _start(facts)]
    events = {"events": content["events"]} if "events" in content else {}
    _write(out, {**facts, **events, "starts": starts})


def record_event(out: Path, event: Mapping[str, Any]) -> None:
    """Add to ``run.json`` that agents were lost, or have come."""
    _, content = read_record(out)
    _write(out, {**content, "events": [*content.get("events", []), event]})


def _write(out: Path, content: Mapping[str, Any]) -> None:
    with replacing(out / "run.json", mode=0o644) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def record_end(out: Path, end: Mapping[str, Any]) -> None:
    """Add to ``run.json`` what the newest start has come to."""
    _, content = read_record(out)
    _write(out, {**content, "end": end})


def _start(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of one start when the run is started again: little, for long chains."""
    keys = ("command", "folder", "started", "first_round", "processes", "versions", *JOB)
    places = facts["agents"].values()
    return {
        **{key: facts[key] for key in keys if key in facts},
        "hosts": sorted({place["host"] for place in places}),
        "devices": sorted({place["device"] for place in places}),
    }


def command_line(words: Sequence[str]) -> str:
    """Return what a shell is given to start a process whose ``sys.argv`` is ``words``."""
    program = Path(words[0])
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", program.parent.name, *words[1:]])
    return shlex.join(words)


def batch_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Return which job of a queue this is, and how often it was put back; nothing outside of one.
    """
    return {name: environment[key] for name, key in JOB.items() if key in environment}


def versions() -> dict[str, str]:
    """Return the versions of Python, decdpo and the libraries it stands on."""
    found = {"python": platform.python_version(), "decdpo": __version__}
    for name in ("torch", "numpy", "scipy", "h5py", "mpi4py", "transformers"):
        version = installed(name)
        if version is not None:
            found[name] = version
    return found


@cache
def installed(package: str) -> str | None:
    """Return the version of a package, None without it; kept, since each takes 10 ms to read."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def saved(out: Path) -> str:
    """Say which round of the run in ``out`` is on disk, and how to go on from it."""
    rounds: list[int] = []
    with suppress(OSError):
        rounds = list(committed(out / "checkpoints"))
    if not rounds or not (out / "config.toml").exists():
        return f"nothing is saved in {out} yet; give the same command again"
    return f"round {max(rounds)} is saved; continue with: {how_to_go_on(out)}"


def how_to_go_on(out: Path) -> str:
    """Return the command that resumes the run in ``out``."""
    first = f"rm {shlex.quote(str(out / 'halt'))} && " if (out / "halt").exists() else ""
    return f"{first}decdpo resume {shlex.quote(str(out))}"


def tell(out: Path) -> None:
    """Note in the folder of a run that it has been said what is saved."""
    with suppress(OSError), (out / ".lock").open("a", encoding="utf-8") as file:
        file.write(SAID)


def told(out: Path) -> bool:
    """Say whether that has been said."""
    try:
        return (out / ".lock").read_text(encoding="utf-8").endswith(SAID)
    except (OSError, ValueError):
        return False
