"""Saving a checkpoint beside a raw write of the same bytes, and beside its peers, in turns.

Every time includes fsync. All ways are taken in turn in each repeat, so that a disk that grows
slower does so for all of them; ratios are medians of the ratios within a repeat.
"""

import importlib.util
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from decdpo.checkpoint.format import committed, discard
from decdpo.checkpoint.interval import interval
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.local import LocalWorld


@dataclass
class State:
    """x : (P,) parameters. first, second : (P,) moments of AdamW. steps : local steps taken."""

    x: Tensor
    first: Tensor
    second: Tensor
    steps: int


RAW, OURS = "raw write", "checkpoint"


def bench(nbytes: int, agents: int, repeats: int, folder: Path | None = None) -> dict[str, Any]:
    """Return what saving ``nbytes`` of so many agents takes, as JSON values.

    rows : by way, median, least and most seconds, processor seconds where they say something, and
    the ratio to the raw write. share : of the time that goes into writing where one write follows
    the other as ``checkpoint.every = "auto"`` spaces them, with a failure every day.
    folder : where to write; None is a temporary folder.
    """
    size = max(1, nbytes // 12 // agents)
    states = {
        agent: State(torch.randn(size), torch.randn(size), torch.randn(size), agent)
        for agent in range(agents)
    }
    with tempfile.TemporaryDirectory(dir=folder) as name:
        seconds, cpu = measure(Path(name), states, repeats)
    rows = {way: _row(values, seconds[RAW], cpu.get(way)) for way, values in seconds.items()}
    write = statistics.median(seconds[OURS])
    blocked = statistics.median(seconds["training waits"])
    return {
        "bytes": 12 * size * agents,
        "agents": agents,
        "repeats": repeats,
        "rows": rows,
        "share": write / interval(write, 86400.0),
        "blocked_share": blocked / interval(write, 86400.0),
    }


def _row(
    values: list[float], raw: list[float], cpu: list[float] | None
) -> dict[str, float | None]:
    return {
        "median_s": statistics.median(values),
        "min_s": min(values),
        "max_s": max(values),
        "cpu_s": statistics.median(cpu) if cpu else None,
        "ratio_to_raw": statistics.median(v / r for v, r in zip(values, raw, strict=True)),
    }


def measure(
    folder: Path, states: dict[int, State], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return wall-clock and processor seconds of every way to save, one value per repeat."""
    store = CheckpointStore(
        folder / "checkpoints", world=LocalWorld(len(states)), keep=2, identity={}
    )
    store.save(0, states)  # allocates the snapshot's buffer
    store.flush()
    keys = [f"{a}.{n}" for a in states for n in ("x", "first", "second")]
    tensors = [t for s in states.values() for t in (s.x, s.first, s.second)]
    ways: dict[str, Callable[[Path], None]] = {RAW: lambda path: raw_write(path, tensors)}
    ways["torch.save"] = lambda path: torch.save(dict(zip(keys, tensors)), path)
    if importlib.util.find_spec("safetensors"):
        from safetensors.torch import save_file

        ways["safetensors"] = lambda path: save_file(dict(zip(keys, tensors)), path)
    blocked: list[float] = []

    def ours(path: Path) -> None:
        began = perf_counter()
        store.save(len(blocked) + 1, states)
        blocked.append(perf_counter() - began)
        store.flush()

    ways[OURS] = ours
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        names = list(ways)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            began, used = perf_counter(), process_time()
            ways[name](folder / "peer")
            if name != OURS:
                sync(folder / "peer")
            seconds[name].append(perf_counter() - began)
            cpu[name].append(process_time() - used)
            # Removing old files is nobody's time here: on a disk with discard it takes a while.
            (folder / "peer").unlink(missing_ok=True)
            for old in list(committed(store.folder).values())[:-1]:
                discard(old)
    seconds["training waits"] = blocked
    seconds["resume"] = [load(store, states) for _ in range(repeats)]
    seconds["computing alone"], seconds["computing meanwhile"] = beside(store, states, repeats)
    shutil.rmtree(folder / "checkpoints")
    return seconds, cpu


def load(store: CheckpointStore, states: dict[int, State]) -> float:
    """Return the seconds that loading takes, all checksums included."""
    began = perf_counter()
    store.load(states)
    return perf_counter() - began


def beside(
    store: CheckpointStore, states: dict[int, State], repeats: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of a fixed piece of computing, alone and while a write goes on."""
    a, alone, busy = torch.randn(256, 256), [], []

    def compute() -> float:
        began = perf_counter()
        for _ in range(20):
            a @ a
        return perf_counter() - began

    for repeat in range(repeats):
        alone.append(statistics.median(compute() for _ in range(20)))
        store.save(10_000 + repeat, states)
        during = []
        while any(thread.name == "checkpoint" for thread in threading.enumerate()):
            during.append(compute())
        busy.append(statistics.median(during or [compute()]))
        store.flush()
    return alone, busy


def raw_write(path: Path, tensors: list[Tensor]) -> None:
    """Write the tensors' bytes one after the other, and nothing else."""
    with open(path, "wb", buffering=0) as file:
        for tensor in tensors:
            view = tensor.numpy().data.cast("B")
            while view:
                view = view[file.write(view) :]


def sync(path: Path) -> None:
    """Force a file to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
