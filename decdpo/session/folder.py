"""The folder of a run: one job at a time uses it, and ``run.json`` tells of every start."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Any
from uuid import uuid4

from msgspec import Meta

from decdpo import __version__
from decdpo.config.options import writable
from decdpo.errors import ConfigError, DataError, EnvironmentFault
from decdpo.files import Lock, checked, naming, os_fault, read_checked, reason, replacing
from decdpo.session.job import Job
from decdpo.session.room import require_room

SHOWS = 10.0
"""Seconds after which a file written on one node is seen by all, on a file system that they share.
"""


def new_folder(job: Job, out: Path) -> str:
    """Make the run folder and return the new run's id, the same on all processes. Collective.

    Raises ``ConfigError`` on all if it holds a run, or what is not of one; see ``room``. What an
    earlier start was killed too soon to finish is no run, and is written over.
    """

    def make() -> None:
        if not job.is_root:
            return
        if not writable(str(out)):
            raise ConfigError(
                f"--out {str(out)!r} is not UTF-8: the run's files could not name it",
                "give a folder whose name is",
            )
        try:
            require_room(out)
            out.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise os_fault(
                fault,
                f"cannot use the run folder {out}",
                remedy="give a folder that you may write to with --out",
                kind=ConfigError,
            ) from None

    job.together(make)
    return str(job.boot.collect({job.rank: uuid4().hex})[0])


@dataclass(frozen=True)
class Place:
    """Where an agent was trained."""

    host: str
    device: str


@dataclass(frozen=True)
class Record:
    """What is read again of run.json.

    id : of the run; empty if it is of an earlier version. starts : every start, the newest last;
    None if an earlier version told of the newest alone. agents : of that one.
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
            "restore it from a copy; a run without one is taken for that of its newest checkpoint",
        ) from None


def run_id(out: Path) -> str:
    """Return the id of the run in ``out``; empty if it has none, being of an earlier version.

    Raises ``DataError`` if its record is damaged.
    """
    return read_record(out)[0].id


@contextmanager
def locked(job: Job, out: Path) -> Iterator[None]:
    """Keep every other job out of the run folder while open; a kill opens it. Collective.

    Raises ``EnvironmentFault`` on all processes if another job has it, or if a process of this job
    finds another folder, or none, under the name ``out``.
    """
    taken: list[Lock] = []

    def lock() -> None:
        if job.is_root:
            with naming("cannot lock the run folder", out):
                taken.append(Lock(out, "job is training"))
                taken[0].write("")
            if taken[0].missing:
                job.say(taken[0].missing)

    try:
        job.together(lock)
        if job.size > 1:
            _require_shared(job, out, taken)
        yield
    finally:
        for held in taken:
            held.close()


def _require_shared(job: Job, out: Path, taken: list[Lock]) -> None:
    """Raise on all processes if one does not find there what the root has written. Collective."""
    mine = None
    if job.is_root:
        mine = uuid4().hex
        with naming("cannot use the run folder", out):
            taken[0].write(mine)
    token = job.boot.collect({job.rank: mine})[0]
    job.together(lambda: _look_for(out, token, job.rank))


def _look_for(out: Path, token: str, rank: int) -> None:
    """Raise ``EnvironmentFault`` unless ``token`` stands in the lock's file, in SHOWS seconds."""
    until = monotonic() + SHOWS
    while True:
        with suppress(OSError):
            if (out / ".lock").read_text(encoding="utf-8") == token:
                return
        if monotonic() > until:
            raise EnvironmentFault(
                f"process {rank} on {platform.node()} does not see the run folder that the others "
                f"use: for it {out} is {os.path.abspath(out)}",
                "name a folder on a file system that all nodes share, by its whole path",
            )
        sleep(0.1)


def record_start(out: Path, facts: Mapping[str, Any]) -> None:
    """Write ``run.json``: the ``facts`` of this start, and the list of all starts, newest last."""
    record, content = read_record(out)
    # Earlier versions told of the newest start alone.
    alone = [_start(content)] if record.agents else []
    starts = [*(alone if record.starts is None else record.starts), _start(facts)]
    with replacing(out / "run.json", mode=0o644) as path:
        path.write_text(json.dumps({**facts, "starts": starts}, indent=1) + "\n", encoding="utf-8")


def _start(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of one start when the run is started again: little, for long chains."""
    keys = ("command", "folder", "started", "first_round", "processes", "versions")
    places = facts["agents"].values()
    return {
        **{key: facts[key] for key in keys if key in facts},
        "hosts": sorted({place["host"] for place in places}),
        "devices": sorted({place["device"] for place in places}),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, decdpo and the libraries it stands on."""
    found = {"python": platform.python_version(), "decdpo": __version__}
    for name in ("torch", "numpy", "scipy", "h5py", "mpi4py", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
