"""What only a GPU shows, one check after another within a time limit; `gpu-check.sh` starts it.

    bits       the same digests on one process and on 2 and 4 ranks that share the GPU, in float32
               and bfloat16, and after a stop and a resume
    staging    messages from pinned memory and from the device, where MPI takes the device's memory
    attention  the ways of tools/bench_attention.py
    step       a step against TRL's with its fused head, batches of 8 and 32, as they are and
               compiled (tools/bench_trl.py), with the peak of memory and the losses of both
    overlap    seconds of waiting for neighbours with and without overlap, and how much copying ran
               beside the computation on another stream

All results, and what could not be done, go to OUT/check.json after every check; logs lie in
OUT/logs. The exit status is 1 if a check failed. With --device cpu everything is rehearsed, small.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FEW = 64
"""Pairs of the runs that show bits."""
BATCH = {"cuda": "8,32", "cpu": "2"}


class Checks:
    """The checks, their limits and their results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.gpu = args.device == "cuda"
        self.ranks = (0, 2, 4) if self.gpu else (0, 2)
        self.dtypes = ("float32", "bfloat16") if self.gpu else ("float32",)
        self.out: Path = args.out
        self.work: Path = args.out / "work"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        (self.out / "logs").mkdir(exist_ok=True)
        self.ends = time.monotonic() + 60 * args.minutes
        self.page: dict[str, Any] = {"device": args.device, "checks": {}}

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.ends - time.monotonic()

    def do(self, name: str, needs: float, check: Callable[[], dict[str, Any]]) -> None:
        """Make one check if there is time for it, and write what it found."""
        if self.args.only and name not in self.args.only:
            return
        began = time.monotonic()
        if self.left() < needs:
            found: dict[str, Any] = {"skipped": f"{self.left():.0f} s left, needs {needs:.0f}"}
        else:
            try:
                found = check()
            except Exception as fault:  # The other checks shall be made all the same.
                found = {"failed": f"{type(fault).__name__}: {fault}"}
        found["check_seconds"] = round(time.monotonic() - began, 1)
        self.page["checks"][name] = found
        (self.out / "check.json").write_text(json.dumps(self.page, indent=1) + "\n")
        said = found.get("failed") or found.get("skipped") or "done"
        print(f"gpu-check: {name}: {said} ({found['check_seconds']} s)", flush=True)

    def begin(self, name: str, *words: Any) -> tuple[str, subprocess.Popen[str]]:
        """Start a command whose output goes to a log."""
        log = (self.out / "logs" / f"{name}.log").open("w+")
        command = [str(word) for word in words]
        # mpirun must not take the rest of what this script reads.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, text=True, cwd=self.work
        )
        log.close()
        return name, process

    def end(self, begun: tuple[str, subprocess.Popen[str]], limit: float) -> str:
        """Wait for a command; returns its output. Raises ``RuntimeError`` if it failed."""
        name, process = begun
        path = self.out / "logs" / f"{name}.log"
        try:
            # Nothing is told by how long a CPU takes.
            left = min(limit, self.left()) if self.gpu else self.left()
            status: Any = process.wait(timeout=max(1.0, left))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = "no end in time"
        said = path.read_text(errors="replace")
        if status:
            lines = [line for line in said.splitlines() if "error:" in line] or said.splitlines()
            raise RuntimeError(f"{name}: {status}: {(lines or [''])[-1][:300]}")
        return said

    def start(self, name: str, ranks: int, *words: Any) -> list[tuple[str, subprocess.Popen[str]]]:
        """Start ``decdpo`` on some ranks; on a CPU one process is this one, and has ended then."""
        if ranks or self.gpu:
            return [self.begin(name, *self.decdpo(ranks, *words))]
        self.here(*words)
        return []

    def decdpo(self, ranks: int, *words: Any) -> list[Any]:
        """Return the command line of ``decdpo`` on some ranks, 0 for a process without MPI."""
        command: list[Any] = [sys.executable, "-m", "decdpo", *words]
        return self.mpirun(ranks, command) if ranks else command

    def mpirun(self, ranks: int, command: list[Any]) -> list[Any]:
        """Return the command line that starts a command on some ranks."""
        start = [sys.executable, "-m", "decdpo.comm.mpi.mpirun", "-n", ranks, "--limit", 300]
        return [*start, *command]

    def config(self, name: str, **sections: dict[str, Any]) -> Path:
        """Write a configuration; returns its path."""
        device: dict[str, Any] = {"kind": self.args.device}
        if self.gpu:
            device["share_gpu"] = True
        sections["device"] = {**device, **sections.get("device", {})}
        lines = []
        for section, values in sections.items():
            lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
        path = self.work / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def here(self, *words: Any) -> str:
        """Run ``decdpo`` in this process, which has imported all; returns what it printed."""
        from decdpo.cli import main as decdpo

        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.work):
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = decdpo([str(word) for word in words])
        if status:
            lines = [line for line in err.getvalue().splitlines() if "error:" in line]
            raise RuntimeError(f"decdpo {words[0]}: {status}: {(lines or [''])[-1][:300]}")
        return out.getvalue()

    def digests(self, *runs: str) -> list[str]:
        """Return the digests of all agents of each run as one line."""
        pages = [json.loads(self.here("checkpoint", "digest", run, "--json")) for run in runs]
        return [json.dumps(page["agents"], sort_keys=True) for page in pages]

    def prepare(self) -> dict[str, Any]:
        """Make shards and models; returns what machine this is."""
        import torch
        from random_model import LARGE, SMALL, byte_tokenizer, write_random
        from transformers import AutoTokenizer

        source = ROOT / "data" / "preferences.jsonl.gz"
        with gzip.open(source, "rt", encoding="utf-8") as lines:
            (self.work / "few.jsonl").write_text("".join(islice(lines, FEW)))
        for name, agents in (("few", 4), ("shards", 1))[: 1 if self.args.shards else 2]:
            path = self.work / "few.jsonl" if name == "few" else source
            self.here("shard", path, "--agents", agents, "--out", name)
        self.args.shards = self.args.shards or self.work / "shards"
        own = byte_tokenizer()
        given = self.args.tokenizer
        tokenizer = own if given is None else AutoTokenizer.from_pretrained(given)
        large = {**SMALL, "hidden_size": 32} if not self.gpu else LARGE
        parameters = write_random(self.work / "model", tokenizer, "bfloat16", **large)
        if self.args.small is None:
            self.args.small = self.work / "small"
            write_random(self.args.small, own, **SMALL)
        return {
            "name": torch.cuda.get_device_name() if self.gpu else "CPU",
            "torch": torch.__version__, "cuda": torch.version.cuda,
            "cpus": os.cpu_count(), "model_parameters": parameters,
        }  # fmt: skip

    def small_run(self, name: str, **more: dict[str, Any]) -> Path:
        """Return the configuration of a run of the small model."""
        policy = {"kind": "causal_lm", "model": str(self.args.small), "max_length": 128}
        sections: dict[str, dict[str, Any]] = {
            "run": {"rounds": 6}, "log": {"every": 3, "figure": False},
            "data": {"shards": "few", "batch_size": 4},
            "policy": {**policy, **more.pop("policy", {})}, "optim": {"kind": "adamw", "lr": 1e-4},
        }  # fmt: skip
        return self.config(name, **sections, **more)

    def bits(self) -> dict[str, Any]:
        """Run the same on several numbers of ranks, all runs at a time."""
        found: dict[str, Any] = {}
        runs = [(dtype, ranks) for dtype in self.dtypes for ranks in self.ranks]
        begun = []
        for dtype, ranks in runs:
            path = self.small_run(dtype, policy={"dtype": dtype})
            run = f"{dtype}-{ranks}"
            begun += self.start(run, ranks, "train", path, "--out", run)
        words = ["train", self.work / "float32.toml", "--set", "run.rounds=3", "--out", "resumed"]
        # The rehearsal starts few processes: it is resumed in this one.
        most, fewer = (self.ranks[-1], 2) if self.gpu else (0, 0)
        begun += self.start("resumed-half", most, *words)
        said = [self.end(started, 150) for started in begun]
        words = ["resume", "resumed", "--set", "run.rounds=6"]
        for started in self.start("resumed-rest", fewer, *words):
            self.end(started, 120)
        names = [f"{dtype}-{ranks}" for dtype, ranks in runs]
        *of, resumed = self.digests(*names, "resumed")
        for dtype in self.dtypes:
            own = {digest for name, digest in zip(names, of) if name.startswith(dtype)}
            found[f"{dtype}: the same on {self.ranks} ranks"] = len(own) == 1
        found[f"resumed on {fewer} ranks from {most}"] = resumed == of[0]
        if not all(found.values()):
            raise RuntimeError(json.dumps(found))
        # A way that is slower than it might be is taken with a note.
        lines = {line.strip() for text in said for line in text.splitlines() if "slow" in line}
        return {**found, "notes": sorted(lines)}

    def staging(self) -> dict[str, Any]:
        """Send from the device's own memory, if MPI can."""
        path = self.small_run("staging", device={"staging": "device"})
        # A CPU refuses, in one process as well.
        try:
            ranks = 2 if self.gpu else 0
            for begun in self.start("staging", ranks, "train", path, "--out", "staging"):
                self.end(begun, 120)
        except RuntimeError as fault:
            if "CUDA" not in str(fault) and "staging" not in str(fault):
                raise
            return {"device": f"refused: {fault}"}
        there, host = self.digests("staging", "float32-0")
        return {"device": there == host}

    def attention(self) -> dict[str, Any]:
        """Time the ways to attend."""
        out = self.out / "attention.json"
        rows = ("--rows", "short:1,short:8,short:32,long:8") if self.gpu else ("--rows", "short:2")
        words = [sys.executable, ROOT / "tools" / "bench_attention.py", "--device",
                 self.args.device, "--json", out, *rows]  # fmt: skip
        words += [] if self.gpu else ["--steps", "2", "--ways", "masked,row"]
        self.end(self.begin("attention", *words), 150)
        return {"cells": json.loads(out.read_text())}

    def step(self, batch: str) -> dict[str, Any]:
        """Take steps beside TRL's."""
        # TRL's fused head is of a package of its own, which runs on GPUs alone.
        for package in ("trl", *(["liger_kernel"] if self.gpu else [])):
            if find_spec(package) is None:
                return {"skipped": f"{package} is not installed"}
        out = self.out / f"step-{batch}.json"
        words = [sys.executable, ROOT / "tools" / "bench_trl.py", "--model", self.work / "model",
                 "--data", f"pairs={self.args.shards}:256", "--batch", batch, "--json", out,
                 "--device", self.args.device, "--trl-python", sys.executable]  # fmt: skip
        if self.gpu:
            words += ["--cases", "bf16 fused", "--steps", 12, "--tokens-at-once", 16384]
            words += ["--compile"]
        else:
            words += ["--cases", "fp32", "--steps", 1, "--pairs", 4]
        self.end(self.begin(f"step-{batch}", *words), 200)
        page: dict[str, Any] = json.loads(out.read_text())
        return page

    def overlap(self) -> dict[str, Any]:
        """Run two ranks with and without overlap, the former under a profiler."""
        found: dict[str, Any] = {}
        rounds, steps, batch = (6, 4, 8) if self.gpu else (2, 1, 2)
        streams = self.out / "streams.json"
        policy = {
            "kind": "causal_lm", "model": str(self.work / "model"), "max_length": 256,
            "dtype": "bfloat16", "tokens_at_once": 16384,
        }  # fmt: skip
        for name in ("apart", "overlap"):
            path = self.config(
                name, run={"rounds": rounds}, log={"every": 1, "heldout_pairs": 2},
                data={"shards": "few", "batch_size": batch}, policy=policy,
                checkpoint={"every": 0}, optim={"kind": "sgd", "lr": 1e-4}, agents={"count": 2},
                algorithm={"local_steps": steps, "overlap": name == "overlap"},
            )  # fmt: skip
            train = ["train", path, "--out", name]
            here: list[Any] = [sys.executable, Path(__file__), "--as-rank", streams, *train]
            command = self.mpirun(2, here) if name == "overlap" else self.decdpo(2, *train)
            self.end(self.begin(f"overlap-{name}", *command), 150)
            lines = (self.work / name / "metrics.jsonl").read_text().splitlines()
            systems = [json.loads(line)["system"] for line in lines if '"system"' in line]
            last, first = systems[-1]["parts"], systems[0]["parts"]
            found[name] = {
                part: (last[part][1] - first[part][1]) / (len(systems) - 1)
                for part in ("compute", "post", "wait", "mix")
            }
            found[name]["peak_memory_bytes"] = systems[-1].get("peak_memory_bytes")
        waits = found["apart"]["wait"], found["overlap"]["wait"]
        found["share_of_waiting_hidden"] = 1 - waits[1] / waits[0] if waits[0] else None
        if streams.is_file():
            found["streams"] = json.loads(streams.read_text())
        return found


def as_rank(out: Path, words: list[str]) -> int:
    """Run ``decdpo`` as one rank, rank 0 under a profiler, whose streams are written to ``out``."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from decdpo.cli import main as decdpo

    if os.environ.get("OMPI_COMM_WORLD_RANK", "0") != "0" or not torch.cuda.is_available():
        return decdpo(words)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        status = decdpo(words)
    trace = out.with_suffix(".trace.json")
    found.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    work: dict[str, list[tuple[float, float]]] = {"kernel": [], "gpu_memcpy": []}
    streams: dict[str, dict[str, float]] = {}
    for event in events:
        kind = event.get("cat")
        if kind in work and "dur" in event:
            begin = float(event["ts"])
            work[kind].append((begin, begin + float(event["dur"])))
            place = streams.setdefault(str(event["args"].get("stream")), dict.fromkeys(work, 0.0))
            place[kind] += float(event["dur"]) / 1e6
    copies = sum(b - a for a, b in work["gpu_memcpy"]) / 1e6
    both = shared(work["gpu_memcpy"], work["kernel"]) / 1e6
    page = {"seconds_by_stream": streams, "copy_seconds": copies, "copied_beside_kernels": both}
    out.write_text(json.dumps(page, indent=1) + "\n")
    trace.unlink()
    return status


def shared(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """Return how long one of ``some`` and one of ``others`` ran at the same time."""
    total, i = 0.0, 0
    others = sorted(others)
    for begin, end in sorted(some):
        while i < len(others) and others[i][1] <= begin:
            i += 1
        j = i
        while j < len(others) and others[j][0] < end:
            total += max(0.0, min(end, others[j][1]) - max(begin, others[j][0]))
            j += 1
    return total


def main(argv: list[str] | None = None) -> int:
    """Make all checks; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", type=Path, help="a small model; a random one without")
    parser.add_argument("--shards", type=Path, help="of real text; those of data/ without")
    parser.add_argument("--tokenizer", type=Path, help="of the random large model; made without")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit (%(default)g)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of checks")
    args = parser.parse_args(argv)
    args.out = args.out.absolute()
    for name in ("small", "shards", "tokenizer"):
        path = getattr(args, name)
        if path is not None:
            if not path.is_dir():
                parser.error(f"--{name} {path} is no folder")
            setattr(args, name, path.absolute())
    checks = Checks(args)
    checks.page["machine"] = checks.prepare()
    print(f"gpu-check: {json.dumps(checks.page['machine'])}", flush=True)
    first, *others = BATCH[args.device].split(",")
    checks.do(f"step-{first}", 75, lambda: checks.step(first))
    checks.do("overlap", 60, checks.overlap)
    for batch in others:
        checks.do(f"step-{batch}", 75, lambda batch=batch: checks.step(batch))
    checks.do("bits", 50, checks.bits)
    checks.do("attention", 40, checks.attention)
    checks.do("staging", 30, checks.staging)
    failed = [name for name, found in checks.page["checks"].items() if "failed" in found]
    print(f"gpu-check: {args.out / 'check.json'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        sys.exit(as_rank(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())
