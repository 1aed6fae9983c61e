"""Kill a run at random moments, resume it on random numbers of ranks, compare it to the bit.

    python tools/kill_and_resume.py SHARDS [--kills 20] [--set SECTION.KEY=VALUE ...]

Trains once without interruption; then, as often as asked, starts the same run, kills all of its
processes with SIGKILL at a random moment (also while a checkpoint is being written), resumes it on
another number of ranks, and compares the parameters' digests and every deterministic field of
metrics.jsonl with the run that was never killed. Exit status 0 if all are equal.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from decdpo.comm.mpi.mpirun import Launch, environment

CONFIG = """[run]
rounds = 120
[data]
shards = "{shards}"
[checkpoint]
every = 4
[comm]
timeout = 60.0
"""


def start(ranks: int, *words: str) -> Launch:
    """Start a run under mpirun; what it says is dropped."""
    program = [sys.executable, "-m", "decdpo", *words]
    return Launch(ranks, program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(launched: Launch, limit: float = 300) -> tuple[int, str]:
    """Wait for a run, for at most ``limit`` seconds; return its status and what is wrong."""
    try:
        code = launched.wait(limit)
    except subprocess.TimeoutExpired:
        kill(launched)
        return 124, f"still running after {limit} s"
    return code, f"ended with status {code}" if code else ""


def kill(launched: Launch) -> None:
    """Kill every process of a run at once: mpirun and its children have groups of their own."""
    process = launched.process
    doomed = [process.pid]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == process.pid:
                doomed.append(int(folder.name))
        except OSError:
            continue
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    launched.kill()


def digests(folder: Path) -> str:
    """Return one digest per agent, as ``decdpo checkpoint digest`` prints them."""
    words = [sys.executable, "-m", "decdpo", "checkpoint", "digest", str(folder), "--json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    content = json.loads(done.stdout)
    return json.dumps(content["agents"], sort_keys=True)


def metrics(folder: Path) -> list[dict[str, object]]:
    """Return the records without times and traffic."""
    records = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["system"]
        records.append(record)
    return records


def main() -> int:
    """Run the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    work = Path(tempfile.mkdtemp(prefix="decdpo-kill-"))
    config = work / "run.toml"
    config.write_text(CONFIG.format(shards=args.shards.resolve()))
    options = [word for value in args.set for word in ("--set", value)]

    def train(ranks: int, out: Path) -> Launch:
        return start(ranks, "train", str(config), "--out", str(out), *options)

    reference = work / "reference"
    began = time.monotonic()
    status, said = finish(train(max(args.ranks), reference))
    length = time.monotonic() - began
    if status:
        print(said)
        return 1
    expected = digests(reference), metrics(reference)
    print(f"reference: {length:.1f} s, {len(expected[1])} records")
    equal = 0
    for number in range(args.kills):
        out = work / f"killed-{number}"
        first, second = chance.choice(args.ranks), chance.choice(args.ranks)
        moment = chance.uniform(0.15, 0.98) * length
        process = train(first, out)
        time.sleep(moment)
        kill(process)
        writing = list(out.glob("checkpoints/.writing*"))
        if (out / "config.toml").exists():
            status, said = finish(start(second, "resume", str(out)))
        else:
            status, said = finish(train(second, out))
        same = status == 0 and (digests(out), metrics(out)) == expected
        equal += same
        print(
            f"{number + 1:3d}: {first} ranks, killed after {moment:5.1f} s"
            f"{' while writing a checkpoint' if writing else ''}, {second} ranks: "
            f"{'equal' if same else f'DIFFERENT (status {status}) {said}'}",
            flush=True,
        )
        if same:
            shutil.rmtree(out)
    print(f"{equal} of {args.kills} equal the run that was never killed")
    if equal == args.kills:
        shutil.rmtree(work)
    return 0 if equal == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
