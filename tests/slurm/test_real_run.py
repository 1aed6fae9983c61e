"""Job templates with the real decdpo on a real SLURM: stopped, requeued, done, the same bits."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import await_that
from shells import Shell, shards_of_users

REPOSITORY = Path(__file__).resolve().parents[2]
PAIRS = REPOSITORY / "data" / "preferences.jsonl.gz"
CONFIG = """
[run]
rounds = 1000
[data]
shards = "users"
batch_size = 8
[policy]
dimension = 4096
[checkpoint]
every = 50
[log]
every = 50
figure = false
"""

pytestmark = pytest.mark.slurm


class Real:
    """A folder with shards, a run that nobody stopped, and the environment that a job needs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.shell = Shell(folder)
        # Few pairs: encoding and measuring them is most of a start.
        shards_of_users(folder, 80)
        self.shell.write("run.toml", CONFIG)
        self.shell("train", "run.toml", "--out", "whole")

    def digests(self, run: str) -> list[object]:
        """Return the fingerprints of the run's agents, whatever else is printed with them."""
        found = json.loads(self.shell("checkpoint", "digest", run, "--json"))
        assert found["round"] == 1000
        return found["agents"]

    def rounds(self, run: str) -> list[int]:
        """Return the rounds that the run's metrics record."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["round"] for line in lines]


@pytest.fixture(scope="module")
def real(slurm, real_environment, tmp_path_factory) -> Real:
    """Return the folder."""
    if not PAIRS.exists():
        pytest.skip(f"{PAIRS} is not there")
    folder = tmp_path_factory.mktemp("real")
    return Real(folder, real_environment(folder))


@pytest.mark.parametrize("launch", ["srun", "mpirun"])
def test_stopped_requeued_and_done_with_the_same_bits(real, slurm, launch):
    job = slurm.submit(
        "--ntasks-per-node=2",
        REPOSITORY / "jobs" / "train.slurm",
        "run.toml",
        launch,
        environment=real.environment | {"DECDPO_LAUNCH": launch},
        folder=real.folder,
    )
    folder = real.folder / launch
    await_that(lambda: list(folder.glob("checkpoints/round_*")), "a checkpoint")
    slurm.signal(job)
    known = slurm.wait(job, 400)
    starts = real.folder / f"{launch}.starts"
    output = (real.folder / "out").read_text()
    assert known["JobState"] == "COMPLETED" and known["Restarts"] == "1", output
    statuses = [line.split()[3] for line in starts.read_text().splitlines()]
    assert statuses == ["85", "0"], output
    assert json.loads((real.folder / launch / "run.json").read_text())["processes"] == 2
    assert real.digests(launch) == real.digests("whole")
    assert real.rounds(launch) == real.rounds("whole")


def ranks_of(run: str) -> list[int]:
    """Return the pids of the ranks that train ``run``."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = command.read_text().split("\0")
            if "python" in Path(words[0]).name and words[-1:] == [""] and run in words:
                found.append(int(command.parent.name))
    return found


def test_a_killed_rank_is_survived_by_the_same_start(real, slurm):
    job = slurm.submit(
        "--ntasks-per-node=2", REPOSITORY / "jobs" / "survive.slurm", "run.toml", "survived",
        environment=real.environment, folder=real.folder,
    )  # fmt: skip
    folder = real.folder / "survived"
    await_that(lambda: list(folder.glob("checkpoints/round_*50")), "a checkpoint")
    os.kill(max(ranks_of("survived")), signal.SIGKILL)
    known = slurm.wait(job, 400)
    output = (real.folder / "out").read_text()
    assert known["JobState"] == "COMPLETED" and known["Restarts"] == "0", output
    assert "; 4 go on after" in output and "done: survived" in output, output
    (event,) = json.loads((folder / "run.json").read_text())["events"]
    assert len(event["lost"]) == 4
    real.shell("replay", "survived")
    assert "after round 1000: of 4 agents every one has the same bits" in real.shell.said


@pytest.fixture
def apart(real: Real) -> Iterator[Path]:
    """Return a folder with the same shards, in none that a container has without being told."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"]).returncode != 0:
        pytest.skip("no namespaces of mounts here, which stand for a container")
    folder = Path(tempfile.mkdtemp(prefix="decdpo-box-", dir="/srv"))
    shutil.copytree(real.folder / "users", folder / "users")
    shutil.copy(real.folder / "run.toml", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("launch", ["srun", "mpirun"])
def test_ranks_that_are_containers_give_the_same_bits(real, slurm, apart, launch):
    """Of the host they see what the template binds, and reach its launcher and one another."""
    box = apart / "bin" / "apptainer"
    box.parent.mkdir()
    shutil.copy(Path(__file__).with_name("box.sh"), box)
    (apart / "image.sif").touch()
    image = [sys.base_prefix, sys.prefix, REPOSITORY / "decdpo"]
    environment = real.environment | {
        "PATH": f"{box.parent}:{real.environment['PATH']}",
        "BOXES": f"{apart}/boxes", "IMAGE": " ".join(map(str, image)), "PROGRAM": sys.executable,
        "DECDPO_IMAGE": "image.sif", "DECDPO_LAUNCH": launch,
    }  # fmt: skip
    job = slurm.submit(
        "--ntasks-per-node=2", REPOSITORY / "jobs" / "container.slurm", "run.toml", "boxed",
        environment=environment, folder=apart,
    )  # fmt: skip
    known = slurm.wait(job, 400)
    output = (apart / "out").read_text()
    assert known["ExitCode"] == "0:0" and "2 ranks on" in output, output
    assert len((apart / "boxes").read_text().splitlines()) == 3, "two ranks, and the status"
    shutil.copytree(apart / "boxed", real.folder / f"boxed-{launch}")
    assert real.digests(f"boxed-{launch}") == real.digests("whole")


def test_bad_input_ends_the_job(real, slurm):
    job = slurm.submit(
        "--ntasks-per-node=2",
        REPOSITORY / "jobs" / "train.slurm",
        "run.toml",
        "bad",
        "--set",
        "optim.rate=1",
        environment=real.environment,
        folder=real.folder,
    )
    known = slurm.wait(job)
    output = (real.folder / "out").read_text()
    assert known["JobState"] == "FAILED" and known["ExitCode"] == "2:0", output
    assert "optim.rate" in output and known["Restarts"] == "0"
