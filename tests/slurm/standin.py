"""A tiny `decdpo` for the tests of the job template: rounds, checkpoints, signals, exit codes.

`train PLAN --out RUN ...`, `resume RUN` and `status RUN --json` do what the real ones promise,
without numbers: each rank counts rounds, rank 0 leaves a folder `checkpoints/round_NNNNNN` after
each, USR1 and TERM end the run after the round at hand with status 85. Every start adds its
arguments to `starts.log` beside RUN. PLAN is JSON: `rounds`, `seconds` a round, `import_seconds`
before signals are heard, and `fail` = [round, status, starts]: the first so many starts end before
that round with that status.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    # Both launchers set it; SLURM_PROCID is 0 for every rank of an mpirun in a batch script.
    rank = int(os.environ.get("PMIX_RANK", 0))
    if sys.argv[1] == "status":
        run = Path(sys.argv[2])
        rounds = json.loads((run / "plan.json").read_text())["rounds"]
        done = (run / "checkpoints" / f"round_{rounds:06d}").exists()
        print(json.dumps([{"state": "done" if done else "broken off"}], indent=2))
        return 0
    if sys.argv[1] == "train":
        source, run = Path(sys.argv[2]), Path(sys.argv[4])
        if rank == 0 and run.exists():
            print(f"run folder {run} exists", file=sys.stderr)
            return 2
    else:
        run = Path(sys.argv[2])
        source = run / "plan.json"
    plan = json.loads(source.read_text())
    starts = 0
    if rank == 0:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        if source != run / "plan.json":
            (run / "plan.json").write_text(json.dumps(plan))
        with open(run.parent / "starts.log", "a+") as log:
            log.write(f"{' '.join(sys.argv[1:])}\n")
            log.seek(0)
            starts = len(log.readlines())
    time.sleep(plan.get("import_seconds", 0))
    stop = []
    signal.signal(signal.SIGUSR1, lambda *_: stop.append(1))
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    fail_round, fail_status, fail_starts = plan.get("fail", [-1, 0, 0])
    done = max((int(p.name[6:]) for p in run.glob("checkpoints/round_*")), default=0)
    for t in range(done, plan["rounds"]):
        if rank == 0 and t == fail_round and starts <= fail_starts:
            return int(fail_status)
        time.sleep(plan.get("seconds", 0.02))
        if rank == 0:
            (run / "checkpoints" / f"round_{t + 1:06d}").mkdir(exist_ok=True)
        if stop:
            return 85
    return 0


if __name__ == "__main__":
    status = main()
    # Python would put the default action back while it ends, and a late signal would kill it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.exit(status)
