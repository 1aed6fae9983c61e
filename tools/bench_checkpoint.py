"""Measure saving a checkpoint against a raw write of the same bytes, and against its peers.

Usage: python tools/bench_checkpoint.py [--mb 256] [--agents 8] [--repeats 5] [--dir D] [--json]

Every figure includes fsync. All ways are taken in turn in each repeat; medians and the spread are
printed. "blocked" is how long ``save`` keeps the training thread; "busy" is how much slower a
computing thread runs while the write goes on behind it. Peers are measured where installed.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor

from decdpo.checkpoint.format import committed, discard
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.local import LocalWorld


@dataclass
class State:
    """x : (P,) parameters. first, second : (P,) moments of AdamW. steps : local steps taken."""

    x: Tensor
    first: Tensor
    second: Tensor
    steps: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=float, default=256, help="size of all states")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", help="where to write; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    size = max(1, int(args.mb * 1e6 / 12 / args.agents))
    states = {
        agent: State(torch.randn(size), torch.randn(size), torch.randn(size), agent)
        for agent in range(args.agents)
    }
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        seconds, cpu = measure(Path(folder), states, args.repeats)
    nbytes = 12 * size * args.agents
    raw = statistics.median(seconds["raw write"])
    rows = {
        name: {
            "median_s": statistics.median(values),
            "min_s": min(values),
            "max_s": max(values),
            "mb_per_s": nbytes / 1e6 / statistics.median(values),
            "cpu_s": statistics.median(cpu[name]) if name in cpu else None,
            "ratio_to_raw": statistics.median(values) / raw,
        }
        for name, values in seconds.items()
    }
    if args.json:
        print(json.dumps({"bytes": nbytes, "agents": args.agents, "rows": rows}, indent=2))
        return
    print(f"{nbytes / 1e6:.0f} MB of {args.agents} agents, {args.repeats} repeats, fsync included")
    print(f"{'':24}{'median ms':>10}{'min':>9}{'max':>9}{'MB/s':>9}{'/ raw':>8}{'cpu ms':>8}")
    for name, row in rows.items():
        print(
            f"{name:24}{row['median_s'] * 1e3:10.1f}{row['min_s'] * 1e3:9.1f}"
            f"{row['max_s'] * 1e3:9.1f}{row['mb_per_s']:9.0f}{row['ratio_to_raw']:8.2f}"
            + (f"{row['cpu_s'] * 1e3:8.0f}" if row["cpu_s"] is not None else "")
        )


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
    ways: dict[str, Callable[[Path], None]] = {"raw write": lambda path: raw_write(path, tensors)}
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

    ways["this, until committed"] = ours
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        names = list(ways)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            began, used = perf_counter(), process_time()
            ways[name](folder / "peer")
            if name != "this, until committed":
                sync(folder / "peer")
            seconds[name].append(perf_counter() - began)
            cpu[name].append(process_time() - used)
            # Removing old files is nobody's time here: on a disk with discard it takes a while.
            (folder / "peer").unlink(missing_ok=True)
            for old in list(committed(store.folder).values())[:-1]:
                discard(old)
    seconds["this, blocked"] = blocked
    seconds["load"] = [load(store, states) for _ in range(repeats)]
    seconds["compute alone"], seconds["compute beside a save"] = beside(store, states, repeats)
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


if __name__ == "__main__":
    main()
