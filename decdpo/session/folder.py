"""The folder of a run as a place: made for a new run, and used by one job at a time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from uuid import uuid4

from decdpo.config.options import writable
from decdpo.errors import ConfigError, EnvironmentFault
from decdpo.files import Lock, naming, os_fault
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
