"""What the job tests share: a stand-in environment for the template, and the SLURM at hand."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from limits import HANG

REPOSITORY = Path(__file__).resolve().parents[2]
STANDIN = Path(__file__).with_name("standin.py")

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
"""States in which a job has ended for good."""


def write_script(path: Path, text: str) -> None:
    """Write an executable file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def environment_of(folder: Path) -> dict[str, str]:
    """Give `folder` a `decdpo` of this checkout; returns the environment in which jobs find it."""
    write_script(
        folder / "venv" / "bin" / "decdpo", f'#!/bin/sh\nexec {sys.executable} -m decdpo "$@"\n'
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return clean | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "DECDPO_HOME": str(REPOSITORY),
        "DECDPO_VENV": str(folder / "venv"),
        "DECDPO_GRACE": "1",
    }


class Bench:
    """A folder with a stand-in `decdpo` in an environment of its own, and a plan to train."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "runs" / "r"
        self.plan = folder / "plan.json"
        write_script(
            folder / "venv" / "bin" / "decdpo", f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n'
        )
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SLURM")
        }
        self.environment |= {
            "DECDPO_HOME": str(REPOSITORY),
            "DECDPO_VENV": str(folder / "venv"),
            "DECDPO_GRACE": "1",
        }

    def write_plan(self, **plan: object) -> None:
        """Write what the stand-in shall do (see standin.py)."""
        self.plan.write_text(json.dumps(plan))

    def starts(self) -> list[str]:
        """Return the commands of all starts so far."""
        log = self.run.parent / "starts.log"
        return log.read_text().splitlines() if log.exists() else []

    def newest_round(self) -> int:
        """Return the newest round that was saved; 0 if none was."""
        return max((int(p.name[6:]) for p in self.run.glob("checkpoints/round_*")), default=0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return a fresh bench."""
    return Bench(tmp_path)


class Slurm:
    """The SLURM at hand, as the tests use it."""

    def submit(self, *arguments: object, environment: dict[str, str], folder: Path) -> str:
        """Submit a job with its output in `folder`/out; returns its id."""
        command = ["sbatch", "--parsable", f"--output={folder}/out", *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=HANG
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """Return what SLURM knows about a job, by its field names."""
        command = ["scontrol", "show", "job", "--oneliner", job]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    def signal(self, job: str, name: str = "USR1") -> None:
        """Send the batch script a signal, as SLURM does when the time limit is near."""
        subprocess.run(["scancel", "--batch", f"--signal={name}", job], check=True, timeout=HANG)

    def cancel(self, job: str) -> None:
        """Cancel a job; one that has ended is left as it is."""
        subprocess.run(["scancel", job], check=False, timeout=HANG)

    def wait(self, job: str, seconds: float = HANG) -> dict[str, str]:
        """Wait until a job has ended for good; returns what SLURM knows about it."""
        deadline = time.monotonic() + seconds
        while (known := self.show(job))["JobState"] not in ENDED:
            if time.monotonic() > deadline:
                self.cancel(job)
                pytest.fail(f"job {job} is still {known['JobState']} after {seconds} s: {known}")
            time.sleep(0.2)
        return known

    def wait_array(self, job: str) -> dict[int, tuple[str, str]]:
        """Wait until every task of an array has ended; returns {number: (state, exit code)}."""
        deadline = time.monotonic() + HANG
        command = ["scontrol", "show", "job", "--oneliner", job]
        while True:
            done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
            tasks = [
                dict(word.split("=", 1) for word in line.split() if "=" in word)
                for line in done.stdout.splitlines()
            ]
            if all(task["JobState"] in ENDED for task in tasks):
                return {
                    int(task["ArrayTaskId"]): (task["JobState"], task["ExitCode"]) for task in tasks
                }
            if time.monotonic() > deadline:
                self.cancel(job)
                states = [(task["ArrayTaskId"], task["JobState"]) for task in tasks]
                pytest.fail(f"after {HANG:.0f} s not every task of {job} has ended: {states}")
            time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm() -> Slurm:
    """Return the SLURM at hand, or skip the test and say why."""
    if shutil.which("sbatch") is None:
        pytest.skip("no SLURM here (no sbatch): as root, tools/slurm-testbed.sh up makes one")
    command = ["sinfo", "--noheader", "--states=idle,mixed", "--format=%n"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    if done.returncode != 0 or not done.stdout.strip():
        pytest.skip(f"SLURM has no idle node: {done.stderr.strip() or 'sinfo lists none'}")
    return Slurm()


@pytest.fixture(scope="session")
def real_environment():
    """Return the function that gives a folder a real `decdpo` for jobs."""
    return environment_of
