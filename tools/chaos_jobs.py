"""Hit whole jobs at random, resume them, and hold each outcome against what is promised.

    python tools/chaos_jobs.py --trials 20 --seed 1 [--ranks 1-4]

Each trial draws an algorithm, a graph, late messages, ranks and one to three faults from its own
seed. It makes the run once without a fault, in one process, and once with all of them, each start
on other ranks. A fault is a rank killed or stopped, the job killed, SIGUSR1, a disk that is full
from some operation on, or a byte changed in the newest checkpoint. After each it demands the exit
status of README and that every committed checkpoint but the changed one is whole; at the end, that
the run has gone on to the digests of the run without a fault. A trial that fails prints its seed.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos import PROGRAM, ROOT, Victims, make_shards

from decdpo.checkpoint.format import committed
from decdpo.checkpoint.inspect import verify
from decdpo.comm.mpi.mpirun import environment

CONFIG = """[run]
rounds = 120
[data]
shards = "{shards}"
[policy]
features = "columns"
[log]
every = {every}
figure = false
[checkpoint]
every = {save}
keep = {keep}
[comm]
timeout = 25.0
[algorithm]
kind = "{algorithm}"
{options}
"""
ALGORITHMS = {
    "dsgd": ["overlap = true", "overlap = false", "local_steps = 2", "fragments = 3"],
    "push_sum": [""],
    "gradient_tracking": ["overlap = true"],
    "exact_diffusion": [""],
    "quasi_global_momentum": [""],
    "fedavg": ["participants = 5\nlocal_steps = 2"],
    "outer_momentum": ["local_steps = 2"],
    "gossip_outer_momentum": ["local_steps = 2"],
    "choco": ['codec = "topk"', 'codec = "int8"'],
    "centralized": [""],
}
GRAPHS = ("ring", "star", "torus", "complete")
SERVERS = ("fedavg", "outer_momentum", "centralized")
LATE = '[staleness]\nkind = "seeded"\nmax_age = 2\n'
STATUSES = {
    "kill a rank": (75, 137), "kill the job": (-9, 137), "stop a rank": (75,), "ask to stop": (85,),
    "fill the disk": (2,), "change a byte": (-9, 137),
}  # fmt: skip
"""The statuses that a fault may end a job with."""
ENDED = 0
"""The job came to its end before the fault met it."""
FULL = """
import sys
from pathlib import Path
from faulty_storage import Storage, faulty
from decdpo.cli import main
out, first = Path(sys.argv[1]).resolve(), int(sys.argv[2])
seen = []
def fails(number, kind, path):
    seen.extend([path] if "checkpoints/.writing" in path else [])
    return len(seen) > first
with faulty(Storage(out, "ENOSPC", fails, lasting=True)):
    status = main(sys.argv[3:])
sys.exit(status)
"""
"""A program that finds the disk full from an operation of a checkpoint on."""


@dataclass
class JobTrial:
    """What one trial does: drawn from ``seed`` alone.

    config : without its shards. faults : by name, with the ranks of the job that each hits.
    """

    seed: int
    config: str
    faults: list[tuple[str, int]]
    last: int
    what: str
    rng: random.Random

    @classmethod
    def draw(cls, seed: int, ranks: tuple[int, int]) -> "JobTrial":
        """Draw the trial of a seed; ranks : the fewest and the most of a job."""
        rng = random.Random(seed)
        algorithm = rng.choice(sorted(ALGORITHMS))
        options = rng.choice(ALGORITHMS[algorithm])
        text = CONFIG.format(
            shards="{shards}", every=rng.choice((1, 10)), save=rng.choice((3, 10, 30)),
            keep=rng.choice((1, 2, 3)), algorithm=algorithm, options=options,
        )  # fmt: skip
        what = f"{algorithm} {options}"
        if algorithm not in SERVERS:
            graph = rng.choice(GRAPHS) if algorithm != "push_sum" else "exponential"
            text += f'[topology]\ngraph = "{graph}"\n'
            what += f" on {graph}"
        if algorithm == "dsgd" and "fragments" not in options and rng.random() < 0.5:
            text += LATE
            what += ", late messages"
        faults = []
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(sorted(STATUSES))
            faults.append((name, rng.randint(max(ranks[0], 2 if "rank" in name else 1), ranks[1])))
        return cls(seed, text, faults, rng.randint(*ranks), what, rng)

    def __str__(self) -> str:
        faults = ", ".join(f"{name} ({ranks})" for name, ranks in self.faults)
        return f"seed {self.seed}: {self.what.strip()}; {faults}; ends on {self.last}".replace(
            "\n", ", "
        )


@dataclass
class Job:
    """The run that is hit.

    fault : what was not as promised. met : the faults that met it. changed : the checkpoints that a
    byte was changed in; they lie there until the run has come past them again.
    """

    folder: Path
    rng: random.Random
    fault: str = ""
    said: str = ""
    met: list[str] = field(default_factory=list)
    changed: set[Path] = field(default_factory=set)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The committed checkpoints by round."""
        return committed(self.folder / "run" / "checkpoints")

    def words(self) -> list[str]:
        """Return how to go on: from the newest checkpoint, or anew where there is none."""
        if self.checkpoints:
            return ["resume", "run"]
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        return ["train", "run.toml", "--out", "run"]

    def start(self, ranks: int, program: Sequence[str] = PROGRAM) -> Victims:
        """Start it or go on with it."""
        support = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
        more = {"PYTHONPATH": support}
        return Victims(ranks, self.folder, "run", self.words(), program, more, survive=False)

    def hit(self, name: str, ranks: int) -> None:
        """Let one fault meet a job, and judge how it ends and what it leaves."""
        program = list(PROGRAM)
        if name == "fill the disk":
            program = [sys.executable, "-c", FULL, "run", str(self.rng.randint(0, 60))]
        before = max(self._unchanged(), default=0)
        victims = self.start(ranks, program)
        try:
            if name != "fill the disk":
                self._await(victims, before)
            self._strike(victims, name, ranks)
            status = victims.wait()
        finally:
            victims.end()
        self.said = victims.said
        left = self._unchanged()
        broken = [line for path in left.values() for line in verify(path)]
        if name == "change a byte" and status != ENDED:
            self._change()
        self.met.append(f"{name}{' (ended)' if status == ENDED else ''}")
        if status not in (*STATUSES[name], ENDED):
            self.fault = f"{name}: " + ("hangs" if status == -1 else f"status {status}")
        elif name == "fill the disk" and status and "No space left" not in self.said:
            self.fault = f"{name}: it is not said that the disk is full"
        elif "Traceback" in self.said:
            self.fault = f"{name}: a traceback"
        if broken:
            self.fault = f"{name}: a committed checkpoint is broken: {broken[0]}"
        elif max(left, default=0) < before:
            self.fault = f"{name}: the checkpoint of round {before} is gone"

    def _await(self, victims: Victims, before: int) -> None:
        """Wait for some moment of the rounds, now and then for that of a write."""
        victims.await_round(before + 1)
        if self.rng.random() < 0.5:
            victims.await_write(self.rng.randint(1, 3))
        time.sleep(self.rng.choice((0.0, 0.005, self.rng.uniform(0.0, 0.3))))

    def _strike(self, victims: Victims, name: str, ranks: int) -> None:
        rank = self.rng.randrange(ranks)
        if name == "kill a rank":
            victims.hit(rank)
        elif name == "stop a rank":
            victims.hit(rank, signal.SIGSTOP)
        elif name == "ask to stop" and victims.process.poll() is None:
            victims.process.send_signal(signal.SIGUSR1)
        elif name in ("kill the job", "change a byte"):
            victims.end()

    def _unchanged(self) -> dict[int, Path]:
        """Return the checkpoints that nobody has changed, by round."""
        return {r: path for r, path in self.checkpoints.items() if path not in self.changed}

    def _change(self) -> None:
        """Change a byte of the newest checkpoint, if there is another to fall back to."""
        found = list(self._unchanged().values())
        if len(found) < 2:
            return
        path = self.rng.choice(sorted(found[-1].iterdir()))
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)
        self.changed.add(found[-1])

    def finish(self, ranks: int, expected: str) -> None:
        """Go on to the end, and compare."""
        victims = self.start(ranks)
        try:
            status = victims.wait()
        finally:
            victims.end()
        self.said = victims.said
        if status:
            self.fault = "the last start hangs" if status == -1 else f"it ends with {status}"
        elif digests(self.folder, "run") != expected:
            self.fault = "its models are not those of the run without a fault"


def decdpo(folder: Path, *words: str) -> str:
    """Run decdpo in one process and return what it prints; raise ``SystemExit`` if it fails."""
    done = subprocess.run(
        [*PROGRAM, *words], cwd=folder, capture_output=True, text=True,
        env=environment({"PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"decdpo {' '.join(words)}: {done.stderr}")
    return done.stdout


def digests(folder: Path, out: str) -> str:
    """Return the digests of all agents as text."""
    found = json.loads(decdpo(folder, "checkpoint", "digest", out, "--json"))
    return json.dumps(found["agents"], sort_keys=True)


def run_trial(trial: JobTrial, folder: Path, shards: Path) -> Job:
    """Run one trial in ``folder`` and judge it."""
    (folder / "run.toml").write_text(trial.config.replace("{shards}", str(shards)))
    decdpo(folder, "train", "run.toml", "--out", "healthy")
    job = Job(folder, trial.rng)
    for name, ranks in trial.faults:
        job.hit(name, ranks)
        if job.fault:
            return job
    job.finish(trial.last, digests(folder, "healthy"))
    return job


def main() -> int:
    """Run the trials; return 1 if any was not as promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; the next is +1")
    parser.add_argument("--ranks", default="1-4", help="the fewest and the most, as 1-4")
    args = parser.parse_args()
    least, _, most = args.ranks.partition("-")
    # Whoever ends this program early leaves no run behind, either.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    failed, met = [], 0
    with tempfile.TemporaryDirectory(prefix="decdpo-chaos-") as name:
        shards = make_shards(Path(name), 8)
        for seed in range(args.seed, args.seed + args.trials):
            trial = JobTrial.draw(seed, (int(least), int(most or least)))
            folder = Path(name) / str(seed)
            folder.mkdir()
            job = run_trial(trial, folder, shards)
            met += sum(not word.endswith("(ended)") for word in job.met)
            print(f"{trial}: {job.fault or 'as promised'}; met {', '.join(job.met)}", flush=True)
            if job.fault:
                failed.append(seed)
                print(job.said[-3000:], flush=True)
    print(f"{args.trials - len(failed)} of {args.trials} trials as promised, {met} faults met")
    if failed:
        print("seeds that failed:", *failed)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
