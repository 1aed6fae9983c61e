"""Kill ranks of training runs at random, and hold each outcome against what is promised.

    python tools/chaos.py --trials 20 --seed 1 [--on-loss survive|adopt] [--ranks 4-6]
        [--while-writing] [--fragments]

Each trial draws an algorithm, a graph, ranks and kills from its own seed, trains under
``mpirun --with-ft ulfm``, kills ranks with SIGKILL while the run trains, and then demands that the
run has ended with status 0, has saved its last round, and that ``decdpo replay`` finds the bits of
all that were left. It prints how many losses were recorded. A trial that fails prints its seed:
``--trials 1 --seed N`` makes it again, as far as the machine's own timing allows. With
``--while-writing`` the first kills of a trial meet the writing of one of its checkpoints, with
``--fragments`` parts of the vector travel in turn. Faults after which a whole job is resumed are
those of ``chaos_jobs.py``.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from decdpo.checkpoint.format import WRITING
from decdpo.comm.mpi.mpirun import Launch, environment

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, "-m", "decdpo"]
"""How decdpo is started."""
LIMIT = 120.0
"""Seconds after which a run counts as hanging."""
CONFIG = """[run]
rounds = {rounds}
[data]
shards = "{shards}"
[policy]
features = "columns"
[log]
every = {every}
[checkpoint]
every = {save}
[comm]
timeout = 15.0
[faults]
on_loss = "{on_loss}"
[algorithm]
kind = "{algorithm}"
{options}
"""
ALGORITHMS = {
    "dsgd": ["overlap = true", "overlap = false", "local_steps = 2"],
    "push_sum": [""],
    "gradient_tracking": ["overlap = true", "overlap = false"],
    "exact_diffusion": [""],
    "fedavg": ["", "participants = 5\nlocal_steps = 2"],
    "outer_momentum": ["local_steps = 2"],
    "gossip_outer_momentum": ["local_steps = 2"],
    "choco": ['codec = "topk"', 'codec = "int8"'],
}
GRAPHS = ("ring", "star", "path", "complete", "torus", "random_matching")
DIRECTED = ("exponential", "one_peer_exponential")


@dataclass
class Trial:
    """What one trial does: drawn from ``seed`` alone.

    kills : seconds after the first record, or after the write is met, and the ranks killed then.
    write : the number of the checkpoint whose writing the first kills meet, None for none.
    """

    seed: int
    ranks: int
    algorithm: str
    options: str
    graph: str
    every: int
    save: int
    rounds: int
    kills: list[tuple[float, tuple[int, ...]]]
    on_loss: str
    write: int | None = None

    @classmethod
    def draw(
        cls, seed: int, ranks: tuple[int, int], on_loss: str, *, writing: bool = False,
        at_once: int = 3,
    ) -> "Trial":  # fmt: skip
        """Draw the trial of a seed; ranks : the fewest and the most."""
        rng = random.Random(seed)
        size = rng.randint(*ranks)
        known = [a for a in sorted(ALGORITHMS) if on_loss == "survive" or a != "outer_momentum"]
        algorithm = rng.choice(known)
        graphs = list(GRAPHS)
        if algorithm in ("dsgd", "push_sum", "gradient_tracking"):
            graphs += DIRECTED
        if algorithm == "choco":
            graphs.remove("random_matching")
        if algorithm in ("fedavg", "outer_momentum"):
            graphs = ["a server"]
        left, kills, at = list(range(size)), [], 0.0
        for _ in range(rng.randint(1, 3)):
            few = rng.randint(1, min(at_once, len(left) - 1)) if len(left) > 1 else 0
            if not few:
                break
            gone = tuple(rng.sample(left, few))
            left = [rank for rank in left if rank not in gone]
            at += rng.choice((0.0, 0.003, rng.uniform(0.0, 0.8)))
            kills.append((at, gone))
        trial = cls(
            seed, size, algorithm, rng.choice(ALGORITHMS[algorithm]), rng.choice(graphs),
            rng.choice((1, 10, 100)), rng.choice((0, 20, 100)), 150, kills, on_loss,
        )  # fmt: skip
        if writing:
            # The first is made before any round, when a loss ends the job; the last at the end.
            trial.save, trial.write = 20, rng.randint(2, 9)
            late = rng.uniform(0.0, 0.01)
            trial.kills = [(at - kills[0][0] + late, gone) for at, gone in kills]
        return trial

    def in_parts(self) -> "Trial":
        """Return the same trial with fragments, where the algorithm has them."""
        if self.algorithm == "fedavg":
            return self
        # That graph is refused with fragments where agents may be lost.
        graph = "exponential" if self.graph == "one_peer_exponential" else self.graph
        return replace(self, options=f"{self.options}\nfragments = 3", graph=graph)

    @property
    def config(self) -> str:
        """The configuration, without its shards."""
        text = CONFIG.replace("{shards}", "{{shards}}").format(**vars(self))
        return text + (f'[topology]\ngraph = "{self.graph}"\n' if self.graph != "a server" else "")

    def __str__(self) -> str:
        gone = " ".join(f"{','.join(map(str, ranks))}@{at:.3f}" for at, ranks in self.kills)
        options = self.options.replace("\n", ", ")
        what = f"{self.ranks} ranks, {self.algorithm} {options} on {self.graph}"
        met = f" from write {self.write} on" if self.write else ""
        return f"seed {self.seed}: {what}, kills {gone}{met}"


@dataclass
class Outcome:
    """What came of it.

    fault : what was not as promised, empty if all was. met : whether a checkpoint was being written
    when the first were killed.
    """

    fault: str = ""
    lost: int = 0
    met: bool = False
    recovery_ms: list[float] = field(default_factory=list)
    said: str = ""


class Writes:
    """The checkpoints that one start of a run writes. out : the run folder, before it is started.

    What an earlier kill has left there in the midst of being written does not count.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / "checkpoints"
        self._left = self._names()

    def now(self) -> set[str]:
        """Return the names of those that are being written, or were when the run was killed."""
        found = self._names()
        # A start removes what was left before it writes: whatever has that name later is its own.
        self._left &= found
        return found - self._left

    def _names(self) -> set[str]:
        return {path.name for path in self._folder.glob(f"{WRITING}*")}


def session(leader: int) -> list[int]:
    """Return the processes of the session that the process ``leader`` began, dead ones apart."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(folder.name))
    return found


def end_session(mpirun: subprocess.Popen[Any]) -> None:
    """Kill an mpirun that began a session, and its ranks, all at once; return when none is left.

    A rank may be begun between the look at them and the death of mpirun, and one that is killed
    may first come to the end of what it has asked the system for.
    """
    while doomed := session(mpirun.pid):
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    mpirun.wait()


class Victims:
    """A training run whose ranks can be hit. folder : where it runs; out : its run folder.

    words : for the command line of ``program``. more : variables of its environment. survive :
    whether MPI is to go on without a rank.
    """

    def __init__(
        self, ranks: int, folder: Path, out: str, words: list[str],
        program: Sequence[str] = PROGRAM, more: Mapping[str, str] | None = None, *,
        survive: bool = True,
    ) -> None:  # fmt: skip
        self.out = folder / out
        self.writes = Writes(self.out)
        self._metrics = self.out / "metrics.jsonl"
        self._before = _identity(self._metrics)
        self._log = folder / f"{out}.log"
        # Every rank leaves its pid, by which it can be hit.
        hello = f'echo $$ > "{folder}/{out}.pid.$OMPI_COMM_WORLD_RANK"; exec "$@"'
        self._pids = [folder / f"{out}.pid.{rank}" for rank in range(ranks)]
        for path in self._pids:
            path.unlink(missing_ok=True)
        with self._log.open("w") as log:
            self._launch = Launch(
                ranks, ["/bin/sh", "-c", hello, "rank", *program, *words],
                options=("--with-ft", "ulfm") if survive else (), stdout=log, stderr=log,
                more=more or {"PYTHONPATH": str(ROOT)}, cwd=folder,
            )  # fmt: skip
            self._launch.begin(LIMIT)
        self.process = self._launch.process

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def recorded(self, round: int) -> bool:
        """Say whether this start has recorded ``round`` or a later one."""
        # A start makes the file anew, without the records after its checkpoint.
        if _identity(self._metrics) in (None, self._before):
            return False
        last = self._metrics.read_text().splitlines()[-1:]
        return any(f'"round": {n},' in line for line in last for n in range(round, round + 1000))

    def await_round(self, round: int, limit: float = LIMIT) -> None:
        """Wait until it has recorded ``round`` or a later one, or has ended."""
        until = time.monotonic() + limit
        while self.process.poll() is None and time.monotonic() < until and not self.recorded(round):
            time.sleep(0.01)

    def await_write(self, number: int, limit: float = LIMIT) -> None:
        """Wait until it has begun to write so many checkpoints, or has ended."""
        begun: set[str] = set()
        until = time.monotonic() + limit
        while self.process.poll() is None and time.monotonic() < until and len(begun) < number:
            begun |= self.writes.now()
            time.sleep(0.0005)

    def hit(self, rank: int, number: int = signal.SIGKILL) -> bool:
        """Send a signal to a rank; say whether it was there."""
        try:
            os.kill(int(self._pids[rank].read_text()), number)
        except (OSError, ValueError):
            return False
        return True

    def wait(self, limit: float = LIMIT) -> int:
        """Wait for the end and return the status of mpirun; -1 if it hangs, and then end it."""
        try:
            return self._launch.wait(limit)
        except subprocess.TimeoutExpired:
            self.end()
            return -1

    def end(self) -> None:
        """End the run so that nothing of it is left."""
        end_session(self.process)
        self._launch.kill()


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from the one that replaces it, None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def run_trial(trial: Trial, folder: Path, shards: Path) -> Outcome:
    """Run one trial in ``folder`` and judge it."""
    config = folder / "run.toml"
    config.write_text(trial.config.format(shards=shards))
    victims = Victims(trial.ranks, folder, "run", ["train", "run.toml", "--out", "run"])
    met = None
    try:
        if trial.write is None:
            victims.await_round(0)
        else:
            victims.await_write(trial.write)
        began = time.monotonic()
        for at, ranks in trial.kills:
            time.sleep(max(0.0, at - (time.monotonic() - began)))
            met = bool(victims.writes.now()) if met is None else met
            if victims.process.poll() is None:
                for rank in ranks:
                    victims.hit(rank)
        code = victims.wait()
    finally:
        victims.end()
    outcome = Outcome(said=victims.said, met=bool(met))
    if code != 0:
        outcome.fault = "hangs" if code < 0 else f"status {code}"
        return outcome
    record = json.loads((folder / "run" / "run.json").read_text())
    events = record.get("events", [])
    outcome.lost = sum(len(event["lost"]) for event in events)
    outcome.recovery_ms = [event["recovery_ms"] for event in events if event["lost"]]
    replayed = subprocess.run(
        [*PROGRAM, "replay", "run", "--json"],
        cwd=folder, capture_output=True, text=True, env=environment({"PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    if replayed.returncode:
        outcome.fault = f"not replayed: {replayed.stdout[-600:]}{replayed.stderr[-600:]}"
    elif json.loads(replayed.stdout)["round"] != trial.rounds:
        outcome.fault = f"only {json.loads(replayed.stdout)['round']} rounds are saved"
    return outcome


def make_shards(folder: Path, agents: int = 12) -> Path:
    """Make small shards of synthetic users."""
    subprocess.run(
        [sys.executable, "-m", "decdpo", "synthesize", "choices", "--agents", str(agents),
         "--pairs", "24", "--out", "users"],
        cwd=folder, check=True, capture_output=True, env=environment({"PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    return folder / "users"


def main() -> int:
    """Run the trials; return 1 if any was not as promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; the next is +1")
    parser.add_argument("--ranks", default="4-6", help="the fewest and the most, as 4-8")
    parser.add_argument("--on-loss", default="survive", choices=("survive", "adopt"))
    parser.add_argument("--while-writing", action="store_true", help="kill during a checkpoint")
    parser.add_argument("--fragments", action="store_true", help="mix a part of the vector a round")
    args = parser.parse_args()
    least, _, most = args.ranks.partition("-")
    # Whoever ends this program early leaves no run behind, either.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    faults, times, lost = [], [], 0
    with tempfile.TemporaryDirectory(prefix="decdpo-chaos-") as name:
        shards = make_shards(Path(name))
        for seed in range(args.seed, args.seed + args.trials):
            sizes = int(least), int(most or least)
            trial = Trial.draw(seed, sizes, args.on_loss, writing=args.while_writing)
            if args.fragments:
                trial = trial.in_parts()
            folder = Path(name) / str(seed)
            folder.mkdir()
            outcome = run_trial(trial, folder, shards)
            lost += outcome.lost
            times += outcome.recovery_ms
            print(f"{trial}: {outcome.fault or 'as promised'}, {outcome.lost} agents lost, "
                  f"{'in the midst of a write, ' if outcome.met else ''}"
                  f"recovery {' '.join(f'{ms:.1f}' for ms in outcome.recovery_ms)} ms", flush=True)
            if outcome.fault:
                faults.append(seed)
                print(outcome.said[-3000:], flush=True)
    print(f"{args.trials - len(faults)} of {args.trials} trials as promised, {lost} agents lost")
    if times:
        median, most, longest = np.quantile(times, (0.5, 0.9, 1.0))
        print(f"recovery ms: median {median:.1f}, 90% {most:.1f}, most {longest:.1f}")
    if faults:
        print("seeds that failed:", *faults)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
