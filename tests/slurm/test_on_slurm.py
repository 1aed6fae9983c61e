"""jobs/train.slurm submitted to a real SLURM, with the stand-in: its signals, requeues and ends."""

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = REPOSITORY / "jobs" / "train.slurm"

pytestmark = pytest.mark.slurm


def submit(slurm, bench, *options: str, **environment: str) -> str:
    """Submit the template on a bench; returns the job's id."""
    return slurm.submit(
        "--ntasks-per-node=2",
        *options,
        TEMPLATE,
        bench.plan,
        bench.run,
        environment=bench.environment | environment,
        folder=bench.folder,
    )


@pytest.mark.parametrize("launch", ["srun", "mpirun"])
def test_to_the_end(slurm, bench, launch):
    bench.write_plan(rounds=3)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = submit(slurm, bench, DECDPO_LAUNCH=launch, PATH=path)
    known = slurm.wait(job)
    output = (bench.folder / "out").read_text()
    assert (known["JobState"], known["Restarts"], known["ExitCode"]) == ("COMPLETED", "0", "0:0")
    assert "2 ranks on" in output and f"done: {bench.run}" in output
    assert bench.newest_round() == 3


@pytest.mark.parametrize("launch", ["srun", "mpirun"])
def test_stopped_requeued_and_done(slurm, bench, wait_for, launch):
    bench.write_plan(rounds=60, seconds=0.1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = submit(slurm, bench, DECDPO_LAUNCH=launch, PATH=path)
    wait_for(lambda: bench.newest_round() >= 1)
    slurm.signal(job)
    known = slurm.wait(job, 300)
    output = (bench.folder / "out").read_text()
    assert known["JobState"] == "COMPLETED" and known["Restarts"] == "1", output
    assert bench.newest_round() == 60
    assert [line.split()[0] for line in bench.starts()] == ["train", "resume"]
    assert "back into the queue" in output


@pytest.mark.slow
def test_the_time_limit_stops_it_in_time(slurm, bench):
    # SLURM sends the signal up to a minute early, so anything from 10 to 70 s after the start.
    bench.write_plan(rounds=160, seconds=0.5)
    job = submit(slurm, bench, "--time=2", "--signal=B:USR1@50")
    known = slurm.wait(job, 420)
    output = (bench.folder / "out").read_text()
    assert known["JobState"] == "COMPLETED" and int(known["Restarts"]) >= 1, output
    assert bench.newest_round() == 160
    assert "asked to stop" in output


@pytest.mark.parametrize("status", [1, 85])
def test_a_failing_run_does_not_loop(slurm, bench, status):
    bench.write_plan(rounds=5, fail=[2, status, 99])
    known = slurm.wait(submit(slurm, bench))
    # An early stop with progress earns one more start; that one makes none, and is the last.
    assert known["JobState"] == "FAILED" and known["ExitCode"] == f"{status}:0"
    assert known["Restarts"] == ("1" if status == 85 else "0")
    assert "not requeued" in (bench.folder / "out").read_text()


def test_a_cancelled_job_stays_cancelled(slurm, bench, wait_for):
    bench.write_plan(rounds=500, seconds=0.1)
    job = submit(slurm, bench)
    wait_for(lambda: bench.newest_round() >= 1)
    slurm.cancel(job)
    known = slurm.wait(job)
    assert known["JobState"] == "CANCELLED" and known["Restarts"] == "0"
    assert bench.newest_round() < 500
    wait_for(lambda: "Submit it again to resume" in (bench.folder / "out").read_text())
