"""Writes one checkpoint at a time, in the background, agreed by all processes."""

import dataclasses
import errno
import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from decdpo.checkpoint.format import (
    MANIFEST,
    WRITING,
    Manifest,
    Part,
    commit,
    part_name,
    read_manifest,
    remove,
    round_name,
)
from decdpo.checkpoint.parts import write_part
from decdpo.checkpoint.state import Record
from decdpo.comm.faults import pack, unpack
from decdpo.errors import CheckpointError, DecdpoError
from decdpo.files import os_fault, sync, write_durably

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or of a quota, that is used up."""


@dataclass(frozen=True)
class Job:
    """One checkpoint to write: the manifest without its parts, the states of this process."""

    manifest: Manifest
    records: Sequence[Record]


class Writer:
    """At most one write in flight; its failure is kept until somebody asks.

    Parameters
    ----------
    folder : where the checkpoints lie.
    part : returns the number of this process's part.
    is_root : says whether this process commits and prunes.
    agree : returns the short texts of all processes in any common order. Collective.
    background : whether to write in a thread, or before ``start`` returns.
    prune : is called on the root after a commit, with the round.

    Attributes
    ----------
    seconds : of the last few writes, from their begin until all is committed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        part: Callable[[], int],
        is_root: Callable[[], bool],
        agree: Callable[[str], list[str]],
        background: bool,
        prune: Callable[[int], None],
    ) -> None:
        self._folder = folder
        self._part = part
        self._is_root = is_root
        self._agree = agree
        self._background = background
        self._prune = prune
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None
        self.seconds: deque[float] = deque(maxlen=5)

    @property
    def writing(self) -> bool:
        """Whether a write is in flight."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def usual_seconds(self) -> float | None:
        """Median seconds of the last few writes, None before the first."""
        return statistics.median(self.seconds) if self.seconds else None

    def start(self, job: Job) -> None:
        """Begin to write ``job``; the write before must have been waited for."""
        if not self._background:
            self._run(job)
            self.wait()
            return
        # A daemon: a process that ends by an error must not wait for peers that are gone.
        self._thread = threading.Thread(
            target=self._run, args=(job,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def poll(self) -> None:
        """Raise the failure of a finished write, once."""
        if self.writing:
            return
        try:
            self.wait()
        except DecdpoError as fault:
            # The others learn of it in the round that they are in, which may wait for this process.
            fault.collective, fault.shared = False, True
            raise

    def wait(self) -> None:
        """Wait for the write in flight; raise its failure, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def settle(self, seconds: float) -> bool:
        """Give the write in flight so long to come to its end; return whether none is left.

        For a job that ends by an error: what the write failed of is not raised any more.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True

    def _run(self, job: Job) -> None:
        try:
            self._write(job)
        except Exception as fault:  # it is raised on the thread that polls
            self._fault = fault

    def _write(self, job: Job) -> None:
        """Write, agree, commit, agree. Collective."""
        began = time.perf_counter()
        name = round_name(job.manifest.round)
        temporary, final = self._folder / (WRITING + name), self._folder / name
        written = [json.loads(text) for text in self._agree(self._write_part(temporary, job))]
        told: list[str] = []
        while not any(told):
            # Once more if the root was lost before it could say how it went: then there is another.
            root = self._is_root()
            told = self._agree(
                self._finish(temporary, final, job.manifest, written) if root else ""
            )
        for outcome in [*written, *map(json.loads, filter(None, told))]:
            if "fault" in outcome:
                raise unpack(outcome["fault"])
        self.seconds.append(time.perf_counter() - began)
        if self._is_root():
            self._prune(job.manifest.round)

    def _write_part(self, temporary: Path, job: Job) -> str:
        """Write this process's part and return its outcome as JSON."""
        path = temporary / part_name(self._part())
        header: dict[str, str | int] = {
            "round": job.manifest.round,
            "config": job.manifest.config,
            "identity": json.dumps(job.manifest.identity),
            "versions": json.dumps(job.manifest.versions),
        }
        try:
            temporary.mkdir(exist_ok=True)
            size, crc = write_part(path, job.records, header)
        except Exception as fault:
            return _failure(path, fault)
        agents = [record.agent for record in job.records]
        return json.dumps(
            {"file": path.name, "bytes": size, "crc32": f"{crc:08x}", "agents": _spans(agents)}
        )

    def _finish(
        self, temporary: Path, final: Path, manifest: Manifest, written: Sequence[dict]
    ) -> str:
        """Commit the checkpoint if every part is written, else remove it; return the outcome."""
        outcome = "{}"
        if not any("fault" in part for part in written):
            try:
                if not temporary.exists() and read_manifest(final).serial == manifest.serial:
                    return outcome  # a root that is lost has committed it
                _commit(temporary, final, manifest, written)
                return outcome
            except Exception as fault:
                outcome = _failure(final, fault)
        try:
            remove(temporary)
        except OSError:
            pass  # the next start removes it; the failure to report is the one before
        return outcome


def _commit(temporary: Path, final: Path, manifest: Manifest, written: Sequence[dict]) -> None:
    parts = sorted(written, key=lambda part: part["file"])
    complete = dataclasses.replace(
        manifest,
        agents=sum(len(range(*span)) for part in parts for span in part["agents"]),
        parts=tuple(
            Part(
                part["file"],
                part["bytes"],
                part["crc32"],
                tuple(agent for span in part["agents"] for agent in range(*span)),
            )
            for part in parts
        ),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    for path in set(temporary.iterdir()) - {temporary / part["file"] for part in parts}:
        # Of a process that was lost before it had written its part.
        path.unlink()
    write_durably(temporary / MANIFEST, complete.to_bytes())
    sync(temporary)
    commit(temporary, final)


def _spans(agents: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return ascending ids as arguments of ``range``: few, however the agents are placed evenly."""
    spans: list[tuple[int, int, int]] = []
    start = 0
    while start < len(agents):
        step = agents[start + 1] - agents[start] if start + 1 < len(agents) else 1
        stop = start + 1
        while stop < len(agents) and agents[stop] - agents[stop - 1] == step:
            stop += 1
        spans.append((agents[start], agents[stop - 1] + 1, step))
        start = stop
    return spans


def _failure(path: Path, fault: Exception) -> str:
    """Describe a failed write as JSON, so that all processes raise the same."""
    if isinstance(fault, OSError):
        named = write_fault(fault, f"the checkpoint was not written: {path}")
    else:
        what = f"the checkpoint was not written: {path}: {type(fault).__name__}: {fault}"
        named = CheckpointError(what, "the earlier checkpoints are intact")
    return json.dumps({"fault": pack(named)})


def write_fault(fault: OSError, what: str) -> DecdpoError:
    """Return the error for a checkpoint that the system did not take; ``what`` names it."""
    less = "or lower checkpoint.keep; " if fault.errno in FULL else ""
    return os_fault(fault, what, also=f"{less}earlier checkpoints are intact")
