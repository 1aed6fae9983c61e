"""How a run ends: what asks for it, what is finished first, what is said of it."""

import shlex
import threading
from functools import partial
from pathlib import Path

from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.mpi.launch import print_past_the_launcher
from decdpo.comm.world import World
from decdpo.errors import STOPPED_EARLY
from decdpo.session.job import Job
from decdpo.session.record import saved, tell, told
from decdpo.signals import Signals, Watch

LOOK = 1.0
"""Seconds between two looks for a file named ``halt``."""


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
            tell=partial(tell, out) if world.is_root else lambda: None,
            speaks=world.is_root,
            end=job.end,
            killed=print_past_the_launcher if world.is_root else lambda: None,
        )
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        job.saved = lambda: "" if told(out) else saved(out)
        job.tell = partial(tell, out)
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


def finish(job: Job, out: Path, stopped: bool, rounds: int) -> int:
    """Say how the run in ``out`` ended and return the exit status.

    rounds : that it was to train.
    """
    if stopped:
        why = "halt file" if (out / "halt").exists() else "another process was asked"
        if job.signals is not None and job.signals.asked:
            why = job.signals.asked
        if not told(out):
            job.say(f"stopped early ({why}): {saved(out)}")
        return STOPPED_EARLY
    more = f"decdpo resume {shlex.quote(str(out))} --set run.rounds={2 * rounds}"
    job.say(f"done; see {out / 'summary.txt'}; round {rounds} is saved, for more: {more}")
    return 0
