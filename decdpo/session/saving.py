"""When a run saves: by rounds, by the time, before its job ends, when somebody asks, at its end.

The root process alone looks at clocks and files. It asks the world for a save, which all processes
take at the end of one round; see ``World.save_due``. What is saved when never changes what is
computed.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from decdpo.checkpoint.interval import interval
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.world import World
from decdpo.config.schema import Checkpoint
from decdpo.files import reason
from decdpo.report.plan_table import size
from decdpo.run import Agent

SAVE = "save"
"""A file of this name in the run folder asks for a checkpoint; it is removed once that is on disk.
"""
LOOK = 1.0
"""Seconds between two looks for it."""
JOB_END = "SLURM_JOB_END_TIME"
"""Holds when the job ends, in seconds since the epoch; ``jobs/common.sh`` sets it if SLURM did not.
"""
SPARE = 10.0
"""Seconds that the last checkpoint is on disk before the job ends, at the least."""
BYTES_PER_SECOND = 1e8
"""Taken for the speed of the disk until a write has been measured."""


def job_end(environment: Mapping[str, str]) -> float | None:
    """Return when the job ends, in seconds since the epoch; None if nobody says."""
    try:
        end = float(environment.get(JOB_END, ""))
    except ValueError:
        return None
    return end if 0.0 < end < 1e11 else None


class Clock:
    """Says on the root process when the time for a save has come.

    between_failures : mean seconds. write : seconds that a save takes until it is on disk, as far
    as they are known. end : of the job in seconds since the epoch, None if it is not known.
    now : returns the seconds since the epoch.
    """

    def __init__(
        self,
        between_failures: float,
        write: Callable[[], float],
        end: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._between_failures = between_failures
        self._write = write
        self._end = end
        self._now = now
        self._saved = self._round = now()
        self._rounds = [0.0]
        self._last_is_due = end is not None

    @property
    def interval(self) -> float:
        """Seconds from one save to the next."""
        return interval(self._write(), self._between_failures)

    def round_is_due(self) -> bool:
        """Say, at the end of every round, whether to save at the next common one."""
        now = self._now()
        self._rounds = [*self._rounds[-9:], now - self._round]
        self._round = now
        return now - self._saved >= self.interval or (self._last_is_due and self._nears_end(now))

    def save_begins(self) -> None:
        """Take note that a save begins."""
        self._saved = self._now()
        self._last_is_due = self._last_is_due and not self._nears_end(self._saved)

    def _nears_end(self, now: float) -> bool:
        """Say whether a save that waits for one round more might not be on disk in time."""
        reserve = SPARE + 2.0 * self._write() + 2.0 * max(self._rounds)
        return self._end is not None and now >= self._end - reserve


class Checkpoints:
    """When the loop saves, and what it leaves beside the states.

    section : of the configuration. out : the run folder. last : the round after which it ends.
    end : of the job in seconds since the epoch, None if it is not known. nbytes : of a checkpoint.

    extra : returns what is saved beside the states. say : is called with a line once a checkpoint
    that was asked for is on disk.
    """

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        section: Checkpoint,
        out: Path,
        last: int,
        *,
        end: float | None = None,
        nbytes: int = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store = store
        self.extra: Callable[[], dict[str, Any]] = dict
        self._world = world
        self._every = section.rounds
        self._last = last
        self._say = say
        self._file = out / SAVE
        self._looked = -LOOK
        self._asked = False
        self._answers: int | None = None
        self._clock: Clock | None = None
        # The root may be lost, and then another process looks at its clock.
        if section.by_time:
            self._clock = Clock(
                3600.0 * section.mtbf_hours, lambda: write_seconds(store, nbytes), end
            )

    def due(self, done: int) -> bool:
        """Say whether the state after ``done`` rounds is saved; to be called after each round."""
        if self._world.is_root and self._wanted() and not self._asked:
            self._asked = True
            self._world.request_save()
        asked = self._world.save_due(done - 1)
        return asked or done == self._last or (self._every > 0 and done % self._every == 0)

    def save(self, done: int, agents: list[Agent]) -> None:
        """Save the state after ``done`` rounds; the writing goes on in the background."""
        self._asked = False
        if self._clock is not None:
            self._clock.save_begins()
        # A later save leaves the answer to the one that was asked for, which may still be written.
        if self._world.is_root and self._answers is None and self._file.exists():
            self._answers = done
        self.store.save(done, {agent.id: agent.state for agent in agents}, self.extra())

    def poll(self) -> None:
        """Raise if an earlier save has failed in the background."""
        self.store.poll()
        if self._answers is not None and not self.store.writing:
            self._answer()

    def flush(self) -> None:
        """Wait until every save is on disk. Collective."""
        self.store.flush()
        if self._answers is not None:
            self._answer()

    def _wanted(self) -> bool:
        by_time = self._clock is not None and self._clock.round_is_due()
        return by_time or self._somebody_asks()

    def _somebody_asks(self) -> bool:
        now = time.monotonic()
        if now - self._looked < LOOK or self._answers is not None:
            return False
        self._looked = now
        return self._file.exists()

    def _answer(self) -> None:
        """Remove the file that asked for a checkpoint, which is on disk."""
        self._say(f"round {self._answers} is saved, as {self._file} asked")
        self._answers = None
        try:
            self._file.unlink(missing_ok=True)
        except OSError as fault:
            self._say(f"{self._file} cannot be removed ({reason(fault)}): ignored from now on")
            self._looked = math.inf


def write_seconds(store: CheckpointStore, nbytes: int) -> float:
    """Return what a write takes: as measured, or estimated from its bytes."""
    measured = store.write_seconds
    return nbytes / BYTES_PER_SECOND + 0.01 if measured is None else measured


def saves(section: Checkpoint, files: int, bytes: int, write: float) -> str:
    """Return in words how often a run saves, and how much. write : seconds that a save takes."""
    each = f"of {files} files, {size(bytes)},"
    if section.by_time:
        seconds = interval(write, 3600.0 * section.mtbf_hours)
        return (
            f"a checkpoint {each} about every {seconds:,.0f} s: a write takes {write:.2g} s, the "
            f"job fails every {section.mtbf_hours:g} h"
        )
    if section.rounds:
        return f"a checkpoint {each} every {section.rounds:,}"
    return f"a checkpoint {each} at the end"
