"""What the files of a run folder say of the run, while it trains and afterwards."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decdpo.checkpoint.format import committed
from decdpo.config import Config
from decdpo.files import is_locked
from decdpo.report.curves import read_metrics
from decdpo.session.record import how_to_go_on, read_record, told

RECENT = 10
"""Records over which the seconds of a round are averaged."""


@dataclass(frozen=True)
class RunStatus:
    """One look at a run.

    state : "training"; "done"; "stopped", if it was asked to stop and saved; "broken off", if it
    ended otherwise; "unknown", if the file system has no locks and its last round is not done.
    round : the last one that is recorded or saved, of ``rounds``. agents, processes, hosts : of the
    newest start, of ``starts``. loss, heldout_accuracy : of the last record, None without one.
    seconds_per_round : mean over the last records, None if unknown. seconds_left : None unless it
    trains. saved_round, saved_seconds_ago : of the newest checkpoint, None without one.
    silent_seconds : since a file of the run changed. go_on : the command that resumes it, if any.
    """

    run: str
    state: str
    round: int
    rounds: int
    agents: int
    processes: int
    hosts: Sequence[str]
    starts: int
    loss: float | None
    heldout_accuracy: float | None
    seconds_per_round: float | None
    seconds_left: float | None
    saved_round: int | None
    saved_seconds_ago: float | None
    silent_seconds: float
    go_on: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def run_status(out: Path, config: Config) -> RunStatus:
    """Return how the run in ``out`` stands. Reads files only, and loads no parameters.

    Raises ``DataError`` if run.json or metrics.jsonl is damaged.
    """
    now = time.time()
    record, content = read_record(out)
    path = out / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    saves = committed(out / "checkpoints")
    newest = max(saves, default=None)
    done = max(records[-1]["round"] if records else 0, newest or 0)
    state = _state(out, done, config.run.rounds)
    pace = _seconds_per_round(records)
    training = state == "training" and pace is not None
    last: Mapping[str, Any] = records[-1] if records else {}
    return RunStatus(
        run=str(out),
        state=state,
        round=done,
        rounds=config.run.rounds,
        agents=len(record.agents),
        processes=int(content.get("processes", 0)),
        hosts=sorted({place.host for place in record.agents.values()}),
        starts=len(record.starts or ()),
        loss=last.get("loss"),
        heldout_accuracy=last.get("heldout/average/accuracy"),
        seconds_per_round=pace,
        seconds_left=(config.run.rounds - done) * (pace or 0.0) if training else None,
        saved_round=newest,
        saved_seconds_ago=now - saves[newest].stat().st_mtime if newest is not None else None,
        silent_seconds=now - _changed(out),
        go_on="" if state in ("training", "done") else how_to_go_on(out),
    )


def _state(out: Path, done: int, rounds: int) -> str:
    taken = is_locked(out)
    if taken:
        return "training"
    if done >= rounds:
        return "done"
    if taken is None:
        return "unknown"
    asked = (out / "halt").exists() or told(out)
    return "stopped" if asked else "broken off"


def _seconds_per_round(records: Sequence[Mapping[str, Any]]) -> float | None:
    recent = records[-RECENT - 1 :]
    if len(recent) < 2:
        return None
    rounds = recent[-1]["round"] - recent[0]["round"]
    seconds = sum(record["system"].get("elapsed_seconds", 0.0) for record in recent[1:])
    return float(seconds / rounds) if rounds > 0 else None


def _changed(out: Path) -> float:
    """Return when a file of the run last changed, in seconds since the epoch."""
    times = [out.stat().st_mtime]
    for path in (out / "metrics.jsonl", out / "run.json", out / "checkpoints"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)
