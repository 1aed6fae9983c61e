"""How a run ends: what asks for it, what is finished first, what is said of it."""

import shlex
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from decdpo.checkpoint.format import committed
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.mpi.launch import print_past_the_launcher
from decdpo.comm.world import World
from decdpo.errors import STOPPED_EARLY
from decdpo.session.job import Job
from decdpo.signals import Signals, Watch

LOOK = 1.0
"""Seconds between two looks for a file named ``halt``."""
SAID = "said"
"""Stands in the lock's file once a process of this job has said what is saved."""


class watching:
    """While a run trains, signals or a file named ``halt`` in its folder ask for a stop.

    Afterwards the job knows what to say and what to finish if it ends by an error.
    """

    def __init__(self, job: Job, world: World, out: Path, store: CheckpointStore) -> None:
        self._job = job
        self._world = world
        self._out = out
        self._own = Signals() if job.signals is None else None
        self._watch = Watch(
            request=world.request_stop,
            saved=lambda: job.saved(),
            tell=partial(_tell, out) if world.is_root else lambda: None,
            speaks=world.is_root,
            end=job.end,
            killed=print_past_the_launcher if world.is_root else lambda: None,
        )
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        job.saved = lambda: "" if _told(out) else saved(out)
        job.tell = partial(_tell, out)
        job.unfinished.append(store.settle)

    def __enter__(self) -> "watching":
        signals = self._job.signals or self._own
        assert signals is not None
        if self._own is not None:
            self._own.__enter__()
        signals.watch(self._watch)
        if self._world.is_root:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.over = True
        self._leave.set()
        if self._own is not None:
            self._own.__exit__()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._leave.wait(LOOK):
            if (self._out / "halt").exists():
                self._world.request_stop()
                return


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


def finish(job: Job, out: Path, stopped: bool, rounds: int) -> int:
    """Say how the run in ``out`` ended and return the exit status.

    rounds : that it was to train.
    """
    if stopped:
        why = "halt file" if (out / "halt").exists() else "another process was asked"
        if job.signals is not None and job.signals.asked:
            why = job.signals.asked
        if not _told(out):
            job.say(f"stopped early ({why}): {saved(out)}")
        return STOPPED_EARLY
    more = f"decdpo resume {shlex.quote(str(out))} --set run.rounds={2 * rounds}"
    job.say(f"done; see {out / 'summary.txt'}; round {rounds} is saved, for more: {more}")
    return 0


def _tell(out: Path) -> None:
    with suppress(OSError), (out / ".lock").open("a", encoding="utf-8") as file:
        file.write(SAID)


def _told(out: Path) -> bool:
    try:
        return (out / ".lock").read_text(encoding="utf-8").endswith(SAID)
    except (OSError, ValueError):
        return False
