"""The logic of jobs/train.slurm and common.sh, with stand-ins for srun, mpirun and scontrol."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from limits import HANG, await_that

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = """#!/bin/bash
echo "$(basename "$0") $*" >>"$LAUNCHES"
while [ "$1" != bash ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >>"$REQUEUES"; exit "${REFUSE:-0}"; fi
echo "JobState=COMPLETING Reason=${REASON:-None} EndTime=${ENDS:-Unknown} Deadline=N/A"
"""
SBATCH = """#!/bin/bash
echo "$*" >>"$SUBMITTED"
echo "${SUCCESSOR:-8};cluster"
exit "${REFUSE:-0}"
"""
SCANCEL = """#!/bin/bash
echo "$*" >>"$CANCELLED"
"""
SQUEUE = """#!/bin/bash
echo 1:00:00
"""


class Template:
    """jobs/train.slurm as SLURM would start it, on a bench."""

    def __init__(self, bench) -> None:
        self.bench = bench
        self.launches = bench.folder / "launches"
        self.requeues = bench.folder / "requeues"
        self.submitted = bench.folder / "submitted"
        self.cancelled = bench.folder / "cancelled"
        self.script = "train.slurm"
        for name, text in (
            ("srun", LAUNCHER), ("mpirun", LAUNCHER), ("scontrol", SCONTROL), ("sbatch", SBATCH),
            ("scancel", SCANCEL), ("squeue", SQUEUE),
        ):  # fmt: skip
            path = bench.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        self.environment = bench.environment | {
            "PATH": f"{bench.folder / 'bin'}:{os.environ['PATH']}",
            "LAUNCHES": str(self.launches),
            "REQUEUES": str(self.requeues),
            "SUBMITTED": str(self.submitted),
            "CANCELLED": str(self.cancelled),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "1",
            "DECDPO_GRACE": "0.2",
        }

    def popen(self, *options: str, **environment: str) -> subprocess.Popen:
        script = REPOSITORY / "jobs" / self.script
        return subprocess.Popen(
            ["bash", str(script), str(self.bench.plan), str(self.bench.run), *options],
            env=self.environment | environment,
            cwd=self.bench.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start(self, *options: str, **environment: str) -> tuple[int, str]:
        """Start it to its end; returns status and output."""
        process = self.popen(*options, **environment)
        output = process.communicate(timeout=HANG)[0]
        return process.returncode, output

    def requeued(self) -> int:
        return len(self.requeues.read_text().split()) if self.requeues.exists() else 0


@pytest.fixture
def template(bench) -> Template:
    return Template(bench)


def test_a_run_that_ends_is_done_and_not_requeued(template):
    template.bench.write_plan(rounds=3)
    status, output = template.start("--set", "run.seed=4", SLURM_CPUS_PER_TASK="3")
    assert status == 0 and "done" in output
    run, plan = template.bench.run, template.bench.plan
    assert template.bench.starts() == [
        f"train {plan} --out {run} --set device.threads=3 --set run.seed=4"
    ]
    assert template.requeued() == 0 and template.bench.newest_round() == 3


def test_a_stop_is_saved_requeued_and_resumed(template):
    template.bench.write_plan(rounds=200)
    process = template.popen()
    await_that(lambda: template.bench.newest_round() >= 2, "round 2")
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=HANG)[0]
    assert process.returncode == 85, output
    assert template.requeued() == 1 and "back into the queue" in output
    assert 2 <= template.bench.newest_round() < 200

    status, _ = template.start("--set", "device.threads=8", SLURM_RESTART_COUNT="1")
    assert status == 0 and template.bench.newest_round() == 200
    # The user's options hold for every start, and after the template's own.
    assert template.bench.starts()[1:] == [
        f"resume {template.bench.run} --set device.threads=1 --set device.threads=8"
    ]
    assert template.requeued() == 1


def test_a_signal_during_the_import_neither_kills_nor_is_lost(template):
    template.bench.write_plan(rounds=500, import_seconds=1.5)
    process = template.popen()
    await_that(template.bench.starts, "a start")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=HANG)
    assert process.returncode == 85
    assert 1 <= template.bench.newest_round() < 500 and template.requeued() == 1


@pytest.mark.parametrize("status", [1, 2, 3, 137])
def test_a_failing_run_is_not_requeued(template, status):
    template.bench.write_plan(rounds=5, fail=[2, status, 9])
    assert template.start()[0] == status
    assert template.start()[0] == status
    assert template.requeued() == 0


def test_stopping_without_progress_does_not_loop(template):
    template.bench.write_plan(rounds=5, fail=[2, 85, 9])
    assert template.start()[0] == 85 and template.requeued() == 1
    status, output = template.start()
    assert status == 85 and template.requeued() == 1
    assert "without a new round since 2" in output


def test_a_lost_peer_is_retried_a_few_times_only(template):
    template.bench.write_plan(rounds=9, fail=[2, 75, 9])
    statuses = [template.start(DECDPO_MAX_LOST="2")[0] for _ in range(5)]
    assert statuses == [75] * 5
    # The first start made two rounds of progress; then two in a row without any, and no more.
    assert template.requeued() == 3


def test_a_launcher_that_ends_with_0_without_its_run_has_lost_a_node(template):
    # Open MPI's mpirun does so when a daemon of its own is gone with its node.
    template.bench.write_plan(rounds=5, fail=[2, 0, 1])
    status, output = template.start()
    assert status == 75 and "ended with 0, and the run is not done" in output
    assert template.requeued() == 1
    status, output = template.start(SLURM_RESTART_COUNT="1")
    assert status == 0 and "done:" in output
    assert template.requeued() == 1


def test_progress_forgives_lost_peers(template):
    template.bench.write_plan(rounds=9, fail=[2, 75, 3])
    statuses = [template.start(DECDPO_MAX_LOST="2")[0] for _ in range(4)]
    assert statuses == [75, 75, 75, 0] and template.requeued() == 3


def test_a_cancelled_job_is_not_requeued_but_one_past_its_limit_is(template):
    for start, (reason, requeued) in enumerate([("None", 0), ("TimeLimit", 1)]):
        template.bench.write_plan(rounds=5000)
        process = template.popen(REASON=reason)
        before = template.bench.newest_round()
        await_that(lambda: len(template.bench.starts()) > start, "a start")
        await_that(lambda: template.bench.newest_round() > before, "a round")
        process.send_signal(signal.SIGTERM)
        pid = int(
            subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()[0]
        )
        os.kill(pid, signal.SIGTERM)
        output = process.communicate(timeout=HANG)[0]
        assert process.returncode == 85, output
        assert template.requeued() == requeued, output


def test_a_refused_requeue_says_how_to_go_on(template):
    template.bench.write_plan(rounds=5, fail=[2, 85, 9])
    status, output = template.start(REFUSE="1")
    assert status == 85 and "Submit it again to resume" in output


def test_a_halt_file_lets_the_run_rest(template):
    template.bench.write_plan(rounds=5, fail=[2, 85, 9], import_seconds=0.5)
    template.bench.run.parent.mkdir()
    process = template.popen()
    while not template.bench.run.is_dir():
        assert process.poll() is None
    (template.bench.run / "halt").touch()
    output = process.communicate(timeout=HANG)[0]
    assert process.returncode == 85 and "/halt asks for a rest" in output
    assert template.requeued() == 0


def test_a_start_that_saved_nothing_is_kept_aside(template):
    template.bench.write_plan(rounds=2, fail=[0, 75, 1])
    assert template.start()[0] == 75
    assert template.start()[0] == 0
    assert template.bench.run.with_name("r.unsaved-1").is_dir()
    assert [line.split()[0] for line in template.bench.starts()] == ["train", "train"]


def test_a_strange_folder_is_never_moved(template):
    template.bench.write_plan(rounds=2)
    template.bench.run.mkdir(parents=True)
    status, output = template.start()
    assert status == 2 and "exists" in output
    assert template.bench.run.is_dir()


def test_the_launchers_get_what_they_need(template):
    template.bench.write_plan(rounds=1)
    assert template.start(DECDPO_LAUNCH_ARGS="--label --quiet")[0] == 0
    environment = {"DECDPO_LAUNCH": "mpirun", "SLURM_NTASKS": "6"}
    assert template.start(**environment)[0] == 0
    srun, mpirun = template.launches.read_text().splitlines()
    assert srun.startswith("srun --mpi=pmix --kill-on-bad-exit=0 --label --quiet bash -c")
    assert mpirun.startswith("mpirun -n 6 --bind-to none")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DECDPO_LAUNCH": "aprun"}, "DECDPO_LAUNCH=aprun is unknown"),
        ({"SLURM_JOB_ID": ""}, "there is no SLURM job"),
        ({"DECDPO_VENV": "/nowhere"}, "DECDPO_VENV=/nowhere has no bin folder"),
    ],
)
def test_a_wrong_setting_is_named(template, environment, message):
    template.bench.write_plan(rounds=1)
    status, output = template.start(**environment)
    assert status == 2
    assert message in output and "remedy: " in output
    assert template.bench.starts() == []


@pytest.mark.parametrize(
    ("options", "environment", "asked"),
    [
        ([], {"SLURM_GPUS_ON_NODE": "4"}, "--set device.kind=cuda"),
        ([], {"SLURM_JOB_GPUS": "0,1"}, "--set device.kind=cuda"),
        (["--set", "device.kind=cpu"], {"SLURM_GPUS_ON_NODE": "4"}, "--set device.kind=cpu"),
        ([], {"SLURM_GPUS_ON_NODE": "0"}, ""),
        ([], {}, ""),
    ],
)
def test_a_job_with_gpus_asks_for_them(template, options, environment, asked):
    template.bench.write_plan(rounds=1)
    assert template.start(*options, **environment)[0] == 0
    (line,) = template.bench.starts()
    assert line.partition("--set device.threads=1")[2].strip() == asked


def test_tasks_find_the_environment_where_a_site_exports_nothing(template):
    template.bench.write_plan(rounds=1)
    launcher = template.bench.folder / "bin" / "srun"
    launcher.write_text(LAUNCHER.replace('echo "', 'echo "$SLURM_EXPORT_ENV ', 1))
    assert template.start(SLURM_EXPORT_ENV="NONE")[0] == 0
    assert template.launches.read_text().startswith("ALL srun ")


@pytest.fixture
def chain(template) -> Template:
    template.script = "chain.slurm"
    return template


def test_a_chain_submits_its_next_job_first_and_withdraws_it_when_done(chain):
    chain.bench.write_plan(rounds=2)
    status, output = chain.start(
        "--set", "run.seed=4", SLURM_JOB_NUM_NODES="2", SLURM_NTASKS_PER_NODE="3",
        SLURM_JOB_PARTITION="long", DECDPO_NEXT_ARGS="--qos=low --mem=0",
    )  # fmt: skip
    assert status == 0 and "job 8 goes on after this one" in output
    assert chain.submitted.read_text() == (
        "--parsable --dependency=afterany:7 --time=1:00:00 --nodes=2 --ntasks-per-node=3 "
        f"--partition=long --qos=low --mem=0 {REPOSITORY}/jobs/chain.slurm {chain.bench.plan} "
        f"{chain.bench.run} --set run.seed=4\n"
    )
    assert chain.cancelled.read_text() == "8\n" and chain.requeued() == 0


@pytest.mark.parametrize("status, goes_on", [(75, True), (1, False), (2, False)])
def test_a_chain_goes_on_after_a_loss_and_not_after_a_failure(chain, status, goes_on):
    chain.bench.write_plan(rounds=5, fail=[2, status, 1])
    ended, output = chain.start()
    assert ended == status and chain.cancelled.exists() != goes_on, output
    assert ("job 8 goes on\n" in output) == goes_on


def test_a_chain_whose_next_job_is_refused_says_how_to_go_on(chain):
    chain.bench.write_plan(rounds=5, fail=[2, 75, 1])
    status, output = chain.start(REFUSE="1")
    assert status == 75 and "could not be submitted" in output
    assert "no job follows. Submit it again to resume" in output and not chain.cancelled.exists()


def test_starts_that_were_killed_with_their_job_are_counted(template):
    """A node that fails leaves the script no time to write down what became of it."""
    template.bench.write_plan(rounds=9, seconds=60)
    begun = Path(f"{template.bench.run}.begun")
    for attempt in range(3):
        process = template.popen(SLURM_RESTART_COUNT=str(attempt), DECDPO_MAX_LOST="1")
        if attempt == 2:
            break
        while not begun.exists() or len(template.bench.starts()) < attempt + 1:
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=HANG)
    output = process.communicate(timeout=HANG)[0]
    assert process.returncode == 2 and "was lost in 2 starts in a row without progress" in output
    assert len(template.bench.starts()) == 2
    lines = Path(f"{template.bench.run}.starts").read_text().splitlines()
    statuses = [line.split()[3] for line in lines]
    assert statuses == ["killed", "killed"]


@pytest.mark.parametrize("environment, started", [
    ({"SLURM_RESTART_COUNT": "4"}, False), ({"DECDPO_CHAINED": "1"}, False), ({}, True),
])  # fmt: skip
def test_the_number_of_starts_is_limited_but_not_by_hand(template, environment, started):
    template.bench.write_plan(rounds=2)
    starts = Path(f"{template.bench.run}.starts")
    starts.parent.mkdir(parents=True)
    starts.write_text("2026-01-01T00:00:00 7 0 85 1 2\n" * 5)
    status, output = template.start(DECDPO_MAX_STARTS="5", **environment)
    assert (status == 0) == started
    assert ("was started 5 times" in output) != started


def test_ranks_learn_when_the_job_ends_and_what_they_get(template):
    template.bench.write_plan(rounds=1)
    path = template.bench.folder / "bin" / "srun"
    path.write_text(LAUNCHER.replace("echo", 'echo "end $SLURM_JOB_END_TIME"; echo', 1))
    _, output = template.start(ENDS="2026-11-27T00:05:00", TZ="UTC", SLURM_CPUS_PER_TASK="2")
    assert "end 1795737900" in output
    assert "threads: 2 a rank, 1 ranks, ? CPUs a node" in output
    assert "binding: as srun does here" in output and "GPUs: 0 a node" in output
    _, output = template.start(SLURM_JOB_END_TIME="5", DECDPO_LAUNCH="mpirun")
    assert "binding: none, by mpirun" in output
    _, output = template.start()
    assert "end \n" in output  # SLURM does not know either


BOX = """#!/bin/bash
echo "$*" >>"$BOXES"
while [ "$1" != decdpo ]; do shift; done
shift
exec "$INSIDE" "$@"
"""


def test_a_container_gets_the_folders_and_the_mpi_of_the_host(template):
    """The image is run by a stand-in; what it is given is what apptainer would be."""
    folder, template.script = template.bench.folder, "container.slurm"
    template.bench.write_plan(rounds=2)
    image = folder / "image.sif"
    image.touch()
    box = folder / "bin" / "apptainer"
    box.write_text(BOX)
    box.chmod(0o755)
    inside = {
        "BOXES": str(folder / "boxes"), "INSIDE": str(folder / "venv/bin/decdpo"),
        "DECDPO_IMAGE": "image.sif", "DECDPO_HOST_MPI": "/opt/mpi", "DECDPO_BIND": "/scratch",
        "PMIX_SERVER_TMPDIR": "/spool/pmix",
    }  # fmt: skip
    status, output = template.start(**inside)
    assert status == 0 and template.bench.newest_round() == 2, output
    # The run, and what asks afterwards whether it is done.
    given, asked = (folder / "boxes").read_text().splitlines()
    assert " decdpo train " in given and " decdpo status " in asked
    assert given.startswith(
        f"exec --bind {folder},/scratch,/opt/mpi,/spool/pmix "
        f"--env LD_LIBRARY_PATH=/opt/mpi/lib {image} decdpo train "
    )
    status, output = template.start(**inside, SLURM_GPUS_ON_NODE="2")
    assert status == 0 and " --nv --env" in (folder / "boxes").read_text().splitlines()[2], output


@pytest.mark.parametrize("environment, message", [
    ({"DECDPO_IMAGE": "none.sif"}, "DECDPO_IMAGE=none.sif is no image"),
    ({"DECDPO_BOX": "podmen"}, "podmen is not on PATH"),
])  # fmt: skip
def test_a_container_that_cannot_be_is_named(template, environment, message):
    template.script = "container.slurm"
    template.bench.write_plan(rounds=2)
    box = template.bench.folder / "bin" / "apptainer"
    box.write_text(BOX)
    box.chmod(0o755)
    status, output = template.start(**environment)
    assert status == 2 and message in output


def test_surviving_is_asked_of_mpirun_and_of_the_run(template):
    template.script = "survive.slurm"
    template.bench.write_plan(rounds=1)
    assert template.start("--set", "run.seed=1", DECDPO_ON_LOSS="adopt")[0] == 0
    (launch,) = template.launches.read_text().splitlines()
    assert launch.startswith("mpirun -n 1 --bind-to none") and " --with-ft ulfm " in launch
    assert " --prtemca oob_tcp_keepalive_time 0 bash -c" in launch
    assert launch.endswith("--set faults.on_loss=adopt --set run.seed=1")


def test_an_mpirun_that_outlives_its_run_is_ended(template):
    """It waits for a node that cannot be reached."""
    template.script = "survive.slurm"
    template.bench.write_plan(rounds=40)
    mpirun = template.bench.folder / "bin" / "mpirun"
    waits = LAUNCHER.replace('exec "$@"', '"$@"\ntrap "" TERM\nfor _ in {1..600}; do sleep 1; done')
    assert waits != LAUNCHER
    mpirun.write_text(waits)
    status, output = template.start(DECDPO_LINGER="0.3")
    assert status == 0 and "done:" in output, output
    assert output.count("the run is over, but mpirun waits") == 1
    assert template.bench.newest_round() == 40 and template.requeued() == 0


def test_an_mpirun_whose_run_goes_on_is_left_alone(template):
    template.script = "survive.slurm"
    template.bench.write_plan(rounds=60, seconds=0.05)
    status, output = template.start(DECDPO_LINGER="0.1")
    assert status == 0 and "mpirun waits" not in output


@pytest.mark.parametrize("written, wanted", [("137", 137), ("2", 0)])
def test_a_grid_is_trained_in_one_job_only_where_no_array_is_wanted(template, written, wanted):
    template.script = "study.slurm"
    decdpo = template.bench.folder / "venv" / "bin" / "decdpo"
    decdpo.write_text(
        f'#!/bin/bash\necho "$*" >>"$LAUNCHES"\n[[ "$*" != *--slurm ]] || exit {written}\n'
    )
    assert template.start()[0] == wanted and not template.submitted.exists()
    array, *rest = template.launches.read_text().splitlines()
    assert array.endswith("--slurm") and len(rest) == (wanted == 0)
