"""jobs/train.slurm submitted to a real SLURM, with the stand-in: its signals, requeues and ends."""

import os
import re
import sys
from pathlib import Path

import pytest
from limits import await_that

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
def test_stopped_requeued_and_done(slurm, bench, launch):
    bench.write_plan(rounds=60, seconds=0.1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = submit(slurm, bench, DECDPO_LAUNCH=launch, PATH=path)
    await_that(lambda: bench.newest_round() >= 1, "round 1")
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


def test_a_cancelled_job_stays_cancelled(slurm, bench):
    bench.write_plan(rounds=500, seconds=0.1)
    job = submit(slurm, bench)
    await_that(lambda: bench.newest_round() >= 1, "round 1")
    slurm.cancel(job)
    known = slurm.wait(job)
    assert known["JobState"] == "CANCELLED" and known["Restarts"] == "0"
    assert bench.newest_round() < 500
    out = bench.folder / "out"
    await_that(lambda: "Submit it again to resume" in out.read_text(), "the advice")


def run_of(bench):
    """Return the lines of RUN.starts, as lists of words."""
    lines = Path(f"{bench.run}.starts").read_text().splitlines()
    return [line.split() for line in lines]


def successor(said, job):
    """Return the job that goes on after ``job``, as that one said; later ones may have begun."""
    (found,) = set(re.findall(rf"job {job}\.\d+: job (\d+) goes on after", said.read_text()))
    return found


def test_a_chain_of_jobs_goes_through_two_stops_to_its_end(slurm, bench):
    """Where jobs are not requeued: three jobs, of which two are stopped."""
    bench.write_plan(rounds=60, seconds=0.1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = bench.environment | {
        "PATH": path, "DECDPO_NEXT_ARGS": f"--output={bench.folder}/out --ntasks-per-node=2",
    }  # fmt: skip
    script = REPOSITORY / "jobs" / "chain.slurm"
    job = slurm.submit(
        "--ntasks-per-node=2", script, bench.plan, bench.run, environment=environment,
        folder=bench.folder,
    )  # fmt: skip
    jobs, said = [job], bench.folder / "out"
    for stop in (1, 2):
        before = bench.newest_round()
        await_that(lambda: bench.newest_round() > before, "a round")
        slurm.signal(jobs[-1])
        assert slurm.wait(jobs[-1])["ExitCode"] == "85:0", said.read_text()
        jobs.append(successor(said, jobs[-1]))
    known = slurm.wait(jobs[-1])
    output = said.read_text()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "0"), output
    assert [words[3] for words in run_of(bench)] == ["85", "85", "0"], output
    assert [words[1] for words in run_of(bench)] == jobs
    assert bench.newest_round() == 60
    last = output.rpartition("is not needed: cancelled")[0].split()[-1]
    assert slurm.show(last)["JobState"] == "CANCELLED"


def test_a_run_that_makes_no_progress_stops_itself(slurm, bench):
    """Its peer is lost in every start; the last start is refused before it launches anything."""
    bench.write_plan(rounds=9, fail=[2, 75, 99])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = bench.environment | {
        "PATH": path, "DECDPO_MAX_LOST": "1",
        "DECDPO_NEXT_ARGS": f"--output={bench.folder}/out --ntasks-per-node=2",
    }  # fmt: skip
    job = slurm.submit(
        "--ntasks-per-node=2", REPOSITORY / "jobs" / "chain.slurm", bench.plan, bench.run,
        environment=environment, folder=bench.folder,
    )  # fmt: skip
    said = bench.folder / "out"
    statuses = []
    while True:
        statuses.append(slurm.wait(job)["ExitCode"])
        output = said.read_text()
        if f"job {job}.0: job {successor(said, job)} is not needed: cancelled" in output:
            break
        job = successor(said, job)
    assert statuses == ["75:0"] * 3, output
    assert "lost a peer in 2 starts in a row without progress: not requeued" in output


def test_an_array_with_a_broken_cell_is_collected(slurm, real_environment, tmp_path):
    from decdpo.data.synthetic import Choices, synthesize

    synthesize(Choices(agents=3, pairs=24, dimension=8, holdout=0.25), tmp_path / "shards")
    (tmp_path / "grid.toml").write_text(
        'title = "Graphs"\nseeds = 1\n[grid]\n"topology.graph" = ["ring", "hypercube"]\n'
        '[base.run]\nrounds = 5\n[base.data]\nshards = "shards"\n'
        '[base.policy]\nfeatures = "columns"\n'
    )
    environment = real_environment(tmp_path) | {
        "DECDPO_THROTTLE": "2", "DECDPO_ARRAY_ARGS": f"--output={tmp_path}/cell-%a -n1",
        "DECDPO_COLLECT_ARGS": f"--output={tmp_path}/collected",
    }  # fmt: skip
    job = slurm.submit(
        REPOSITORY / "jobs" / "study.slurm", "grid.toml", "study", environment=environment,
        folder=tmp_path,
    )  # fmt: skip
    assert slurm.wait(job)["ExitCode"] == "0:0", (tmp_path / "out").read_text()
    words = (tmp_path / "out").read_text().split()
    array, collecting = words[words.index("array") + 1].rstrip(","), words[-1]
    known = slurm.wait(collecting)
    output = (tmp_path / "collected").read_text()
    states = slurm.wait_array(array)
    assert sorted(state for state, _ in states.values()) == ["COMPLETED", "FAILED"]
    assert known["ExitCode"] == "1:0" and "some cells are broken" in output
    assert "hypercube" in (tmp_path / "study/summary.md").read_text().split("Broken cells")[1]
    assert len((tmp_path / "study/final.csv").read_text().splitlines()) == 2


def test_a_container_starts_its_ranks_by_srun(slurm, bench):
    """The image is run by a stand-in, which has the host's PMIx as a container has it."""
    bench.write_plan(rounds=3)
    (bench.folder / "image.sif").touch()
    box = bench.folder / "bin" / "apptainer"
    box.parent.mkdir()
    box.write_text(
        '#!/bin/bash\necho "rank $PMIX_RANK $*" >>"$BOXES"\n'
        'while [ "$1" != decdpo ]; do shift; done\nshift\nexec "$INSIDE" "$@"\n'
    )
    box.chmod(0o755)
    environment = bench.environment | {
        "PATH": f"{box.parent}:{os.environ['PATH']}", "DECDPO_IMAGE": "image.sif",
        "BOXES": f"{bench.folder}/boxes", "INSIDE": f"{bench.folder}/venv/bin/decdpo",
    }  # fmt: skip
    job = slurm.submit(
        "--ntasks-per-node=2", REPOSITORY / "jobs" / "container.slurm", bench.plan, bench.run,
        environment=environment, folder=bench.folder,
    )  # fmt: skip
    known = slurm.wait(job)
    output = (bench.folder / "out").read_text()
    assert known["ExitCode"] == "0:0" and bench.newest_round() == 3, output
    lines = (bench.folder / "boxes").read_text().splitlines()
    # Besides the ranks, the script asks in the same image whether the run is done.
    given = sorted(line for line in lines if " decdpo status " not in line)
    assert len(lines) == len(given) + 1
    assert [line.split()[1] for line in given] == ["0", "1"]
    assert all(f"--bind {bench.folder}," in line for line in given), given
