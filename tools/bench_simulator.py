"""Time many agents in a process: wall and CPU seconds, memory, and the digest of all models.

    python tools/bench_simulator.py PAIRS --agents 1000 --dimension 65536

PAIRS is a file of pairs, dealt out by `decdpo shard`; without it answers of random words are. The
agents are on a torus. Another checkout (``--against TREE``) is timed in turns with this one, so
that what else runs on the machine slows both. Printed are the medians, and for each checkout the
seconds of every part of a round and the digest, which must be the same for all runs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WORDS, LENGTH = 20_000, 60
"""Words to choose from, and of an answer, where there is no file of pairs."""


class Timed(NamedTuple):
    """One run: seconds of wall and CPU, peak memory of a process in bytes, digest, seconds by
    part, the means over ranks."""

    wall: float
    cpu: float
    memory: int
    digest: str
    parts: dict[str, float]


def decdpo(tree: Path, *words: object) -> str:
    """Run a command of the checkout ``tree``; return what it prints."""
    command = [sys.executable, "-m", "decdpo", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def random_pairs(path: Path, count: int) -> Path:
    """Write ``count`` pairs of answers of random words, frequent ones more often."""
    draw = random.Random(0)

    def answer() -> str:
        return " ".join(f"w{int(WORDS ** draw.random())}" for _ in range(LENGTH))

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"prompt": f"question {number}", "chosen": answer(), "rejected": answer()}
            file.write(json.dumps(row) + "\n")
    return path


def timed(tree: Path, config: Path, out: Path, overrides: list[str], ranks: int) -> Timed:
    """Train in a process of its own, or on several ranks."""
    words = [word for text in overrides for word in ("--set", text)]
    command = [sys.executable, "-m", "decdpo", "train", config, "--out", out, *words]
    if ranks > 1:
        command = [sys.executable, "-m", "decdpo.comm.mpi.mpirun", "-n", ranks, *command]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    began = time.perf_counter()
    with open(f"{out}.log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [str(word) for word in command], env=environment, cwd=tree, stdout=log, stderr=log
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            log.seek(0)
            raise SystemExit(log.read()[-2000:])
    found = json.loads(decdpo(tree, "checkpoint", "digest", out, "--json"))["agents"]
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    parts: dict[str, float] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        for part, (_, mean, _) in json.loads(line)["system"]["parts"].items():
            parts[part] = parts.get(part, 0.0) + mean
    return Timed(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, digest, parts)


def main() -> None:
    """Time the runs, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=Path, nargs="?", help="file of pairs")
    parser.add_argument("--agents", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--dimension", type=int, default=65536, help="features (%(default)s)")
    parser.add_argument("--rounds", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="device.threads (%(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="of mpirun (%(default)s)")
    parser.add_argument("--runs", type=int, default=1, help="of each checkout (%(default)s)")
    parser.add_argument("--set", action="append", default=[], help="further SECTION.KEY=VALUE")
    parser.add_argument("--against", type=Path, action="append", default=[], help="checkout")
    args = parser.parse_args()
    trees = [tree.resolve() for tree in (ROOT, *args.against)]
    with tempfile.TemporaryDirectory(prefix="decdpo-simulator-") as name:
        folder = Path(name)
        pairs = args.pairs and args.pairs.resolve()
        source = pairs or random_pairs(folder / "pairs.jsonl", 3 * args.agents)
        decdpo(ROOT, "shard", source, "--agents", args.agents, "--out", folder / "shards")
        config = folder / "run.toml"
        config.write_text(
            f"[run]\nrounds = {args.rounds}\n[data]\nshards = \"{folder / 'shards'}\"\n"
            f'[policy]\ndimension = {args.dimension}\n[topology]\ngraph = "torus"\n'
            f"[log]\nevery = 10\n[device]\nthreads = {args.threads}\n"
        )
        found: list[list[Timed]] = [[] for _ in trees]
        for number in range(args.runs):
            for tree, runs in zip(trees, found):
                out = folder / str(number)
                runs.append(timed(tree, config, out, args.set, args.ranks))
                shutil.rmtree(out)
    for tree, runs in zip(trees, found):
        wall, cpu, memory = (statistics.median(run[i] for run in runs) for i in range(3))
        parts = {p: statistics.median(run.parts.get(p, 0.0) for run in runs) for p in runs[0].parts}
        size = f"{memory / 1e9:.2f} GB a process"
        print(f"{tree}: {wall:.1f} s, {cpu:.1f} s of CPU, {size}; rounds: ", end="")
        print(", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items()), end="")
        print(f"; digest {' '.join(sorted({run.digest for run in runs}))}")


if __name__ == "__main__":
    main()
