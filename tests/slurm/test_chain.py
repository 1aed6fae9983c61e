"""The logic of jobs/train.slurm and common.sh, with stand-ins for srun, mpirun and scontrol."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = """#!/bin/bash
echo "$(basename "$0") $*" >>"$LAUNCHES"
while [ "$1" != bash ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >>"$REQUEUES"; exit "${REFUSE:-0}"; fi
echo "JobState=COMPLETING Reason=${REASON:-None}"
"""


class Template:
    """jobs/train.slurm as SLURM would start it, on a bench."""

    def __init__(self, bench) -> None:
        self.bench = bench
        self.launches = bench.folder / "launches"
        self.requeues = bench.folder / "requeues"
        for name, text in (("srun", LAUNCHER), ("mpirun", LAUNCHER), ("scontrol", SCONTROL)):
            path = bench.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        self.environment = bench.environment | {
            "PATH": f"{bench.folder / 'bin'}:{os.environ['PATH']}",
            "LAUNCHES": str(self.launches),
            "REQUEUES": str(self.requeues),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "1",
            "DECDPO_GRACE": "0.2",
        }

    def popen(self, *options: str, **environment: str) -> subprocess.Popen:
        script = REPOSITORY / "jobs" / "train.slurm"
        return subprocess.Popen(
            ["bash", str(script), str(self.bench.plan), str(self.bench.run), *options],
            env=self.environment | environment,
            cwd=self.bench.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self, *options: str, **environment: str) -> tuple[int, str]:
        """Start it to its end; returns status and output."""
        process = self.popen(*options, **environment)
        output = process.communicate(timeout=60)[0]
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


def test_a_stop_is_saved_requeued_and_resumed(template, wait_for):
    template.bench.write_plan(rounds=200)
    process = template.popen()
    wait_for(lambda: template.bench.newest_round() >= 2)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
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


def test_a_signal_during_the_import_neither_kills_nor_is_lost(template, wait_for):
    template.bench.write_plan(rounds=500, import_seconds=1.5)
    process = template.popen()
    wait_for(lambda: template.bench.starts())
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
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


def test_progress_forgives_lost_peers(template):
    template.bench.write_plan(rounds=9, fail=[2, 75, 3])
    statuses = [template.start(DECDPO_MAX_LOST="2")[0] for _ in range(4)]
    assert statuses == [75, 75, 75, 0] and template.requeued() == 3


def test_a_cancelled_job_is_not_requeued_but_one_past_its_limit_is(template, wait_for):
    for start, (reason, requeued) in enumerate([("None", 0), ("TimeLimit", 1)]):
        template.bench.write_plan(rounds=5000)
        process = template.popen(REASON=reason)
        before = template.bench.newest_round()
        wait_for(lambda: len(template.bench.starts()) > start)
        wait_for(lambda: template.bench.newest_round() > before)
        process.send_signal(signal.SIGTERM)
        pid = int(
            subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()[0]
        )
        os.kill(pid, signal.SIGTERM)
        output = process.communicate(timeout=60)[0]
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
    output = process.communicate(timeout=60)[0]
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
