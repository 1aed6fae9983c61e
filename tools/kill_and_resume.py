"""Kill a run at random moments, resume it on random numbers of ranks, compare it to the bit.

    python tools/kill_and_resume.py SHARDS [--kills 20] [--in-a-row 1] [--while-writing]
        [--set SECTION.KEY=VALUE ...]

Trains once without interruption; then, as often as asked, starts the same run, kills all of its
processes with SIGKILL at a random moment, resumes it on another number of ranks, and compares the
parameters' digests and every deterministic field of metrics.jsonl with the run that was never
killed. With ``--in-a-row`` what was resumed is killed and resumed again before it is compared, with
``--while-writing`` a kill waits for a checkpoint to be written. After every kill each committed
checkpoint must be whole, and none be gone that was the newest. Exit status 0 if all are equal.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from chaos import Writes, end_session

from decdpo.checkpoint.format import committed
from decdpo.checkpoint.inspect import verify
from decdpo.comm.mpi.mpirun import Launch, environment

LIMIT = 300.0
"""Seconds after which a run counts as hanging."""
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


def finish(launched: Launch, limit: float = LIMIT) -> tuple[int, str]:
    """Wait for a run, for at most ``limit`` seconds; return its status and what is wrong."""
    try:
        code = launched.wait(limit)
    except subprocess.TimeoutExpired:
        kill(launched)
        return 124, f"still running after {limit} s"
    return code, f"ended with status {code}" if code else ""


def kill(launched: Launch) -> None:
    """Kill every process of a run at once, and wait until none is left."""
    end_session(launched.process)
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


@dataclass
class Victim:
    """One run, killed and resumed until it has been killed often enough; then it is compared.

    config : its configuration. out : its folder. options : for the command line. length : seconds
    that it takes if nobody kills it. aimed : whether kills wait for a write.

    Attributes
    ----------
    fault : what was not as promised, empty if all was. starts : a word on each start.
    """

    config: Path
    out: Path
    options: list[str]
    length: float
    aimed: bool
    fault: str = ""
    starts: list[str] = field(default_factory=list)
    _newest: int = 0

    def start(self, ranks: int) -> Launch:
        """Resume from the newest checkpoint; without one begin anew."""
        if committed(self.out / "checkpoints"):
            return start(ranks, "resume", str(self.out))
        shutil.rmtree(self.out, ignore_errors=True)
        return start(ranks, "train", str(self.config), "--out", str(self.out), *self.options)

    def strike(self, ranks: int, chance: random.Random) -> bool:
        """Start on so many ranks and kill all; say whether the run had not ended before."""
        writes = Writes(self.out)
        launched = self.start(ranks)
        self.await_moment(launched, writes, chance)
        struck = launched.process.poll() is None
        kill(launched)
        self.starts.append(f"{ranks}{'w' if writes.now() else '' if struck else ' ended'}")
        self._judge()
        return struck

    def await_moment(self, launched: Launch, writes: Writes, chance: random.Random) -> None:
        """Wait for the moment to kill; the run may have ended then."""
        if not self.aimed:
            time.sleep(chance.uniform(0.15, 0.98) * self.length)
            return
        begun: set[str] = set()
        wanted = chance.randint(1, 5)
        until = time.monotonic() + LIMIT
        while len(begun) < wanted and launched.process.poll() is None:
            if time.monotonic() > until:
                self.fault = f"no write for {LIMIT:.0f} s"
                return
            begun |= writes.now()
            time.sleep(0.0005)
        time.sleep(chance.uniform(0.0, 0.02))

    def _judge(self) -> None:
        """Look at what a kill has left: whole checkpoints, the newest one before among them."""
        found = committed(self.out / "checkpoints")
        broken = [line for path in found.values() for line in verify(path)]
        if broken:
            self.fault = f"a committed checkpoint is broken: {broken[0]}"
        elif max(found, default=0) < self._newest:
            self.fault = f"the checkpoint of round {self._newest} is gone"
        self._newest = max(found, default=0)

    def finish(self, ranks: int, expected: tuple[str, list[dict[str, object]]]) -> None:
        """Resume on so many ranks to the end, and compare."""
        self.starts.append(str(ranks))
        status, said = finish(self.start(ranks))
        if status:
            self.fault = self.fault or said
        elif (digests(self.out), metrics(self.out)) != expected:
            self.fault = self.fault or "DIFFERENT"


def main() -> int:
    """Run the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--in-a-row", type=int, default=1, help="kills of one run")
    parser.add_argument("--while-writing", action="store_true", help="kill during writes alone")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    work = Path(tempfile.mkdtemp(prefix="decdpo-kill-"))
    config = work / "run.toml"
    config.write_text(CONFIG.format(shards=args.shards.resolve()))
    options = [word for value in args.set for word in ("--set", value)]
    reference = work / "reference"
    began = time.monotonic()
    words = ["train", str(config), "--out", str(reference), *options]
    status, said = finish(start(max(args.ranks), *words))
    length = time.monotonic() - began
    if status:
        print(said)
        return 1
    expected = digests(reference), metrics(reference)
    print(f"reference: {length:.1f} s, {len(expected[1])} records")
    kills, writing, runs, unequal = 0, 0, 0, 0
    # Twice as many: some runs end before they are killed.
    while kills < args.kills and runs < 2 * args.kills:
        victim = Victim(config, work / f"killed-{runs}", options, length, args.while_writing)
        for _ in range(min(args.in_a_row, args.kills - kills)):
            if not victim.strike(chance.choice(args.ranks), chance) or victim.fault:
                break
            kills += 1
        victim.finish(chance.choice(args.ranks), expected)
        runs += 1
        unequal += bool(victim.fault)
        writing += sum(word.endswith("w") for word in victim.starts)
        print(
            f"{kills:3d} kills: ranks {', '.join(victim.starts)}: {victim.fault or 'equal'}",
            flush=True,
        )
        if not victim.fault:
            shutil.rmtree(victim.out)
    print(
        f"{kills} kills, {writing} of them while a checkpoint was written (w): "
        f"{runs - unequal} of {runs} runs equal the one that was never killed"
    )
    if not unequal:
        shutil.rmtree(work)
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
