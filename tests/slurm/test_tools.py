"""The scripts in tools/, jobs/ and .ci/: they parse, and a wrong use is told what is right."""

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = [
    *sorted(REPOSITORY.glob("tools/*.sh")),
    *sorted(REPOSITORY.glob("jobs/*.sh")),
    *sorted(REPOSITORY.glob("jobs/*.slurm")),
    REPOSITORY / ".ci" / "run",
]


def call(*command: object, **environment: str) -> tuple[int, str]:
    """Run a script; returns its exit status and what it said."""
    done = subprocess.run(
        ["bash", *map(str, command)],
        cwd="/",
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_all_scripts_are_here():
    names = {path.name for path in SCRIPTS}
    assert names >= {"demo.sh", "test.sh", "setup.sh", "common.sh", "train.slurm", "run"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_parses(script):
    assert call("-n", script) == (0, "")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("demo.sh", ["fast"], "demo.sh takes no arguments, got: fast"),
        ("setup.sh", ["x"], "setup.sh takes no arguments, got: x"),
        ("test.sh", ["slow"], "unknown arguments: slow"),
        ("test.sh", ["quick", "x"], "unknown arguments: quick x"),
        ("test-ranks.sh", ["four"], "give the number of ranks, got 'four'"),
        ("slurm-testbed.sh", [], "unknown command ''"),
        ("slurm-testbed.sh", ["up", "now"], "too many arguments: up now"),
    ],
)
def test_a_wrong_use_is_refused(script, arguments, message):
    status, output = call(REPOSITORY / "tools" / script, *arguments)
    assert status == 2 and message in output


def test_setup_takes_a_given_python_as_it_is(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Python 3.99\n")
    python.chmod(0o755)
    (tmp_path / "mpirun").symlink_to("/bin/true")
    status, output = call(REPOSITORY / "tools" / "setup.sh", DECDPO_PYTHON=str(python))
    assert (status, output) == (0, f"setup: ready, Python 3.99 in {tmp_path}\n")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DECDPO_PYTHON": "/nowhere/python"}, "DECDPO_PYTHON=/nowhere/python is not there"),
        ({"DECDPO_PYTHON": "", "DECDPO_VENV": "/proc/none"}, "cannot make the folder /proc/none"),
    ],
)
def test_setup_names_what_is_wrong(environment, message):
    status, output = call(REPOSITORY / "tools" / "setup.sh", **environment)
    assert status == 2 and message in output and "remedy: " in output


def test_the_test_bed_refuses_another_slurm(tmp_path):
    other = tmp_path / "slurm.conf"
    other.write_text("ClusterName=real\n")
    environment = {"SLURM_CONF": str(other), "DECDPO_SLURM_DIR": str(tmp_path / "bed")}
    status, output = call(REPOSITORY / "tools" / "slurm-testbed.sh", "up", **environment)
    assert status == 2
    assert "points to another SLURM" in output or "needs root" in output
    assert not (tmp_path / "bed").exists()


def test_the_test_bed_says_that_it_is_not_up(tmp_path):
    environment = {"DECDPO_SLURM_DIR": str(tmp_path / "bed")}
    status, output = call(REPOSITORY / "tools" / "slurm-testbed.sh", "status", **environment)
    assert (status, output) == (3, "slurm-testbed: is not up\n")


def test_the_constraints_meet_the_requirements():
    """Every direct requirement that setup.cfg names is pinned."""

    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    for extra in ("mpi", "lm", "parquet", "plot", "test", "dev"):
        lines += parser["options.extras_require"][extra].split("\n")
    wanted = {re.split(r"[<>=~! ]", line.strip())[0].lower() for line in lines if line.strip()}
    pinned = {
        line.split("==")[0].lower()
        for line in (REPOSITORY / "tools" / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    assert wanted - pinned == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="the test bed needs root")
@pytest.mark.parametrize("command", ["up", "down"])
def test_the_test_bed_leaves_a_folder_of_others_alone(tmp_path, command):
    (tmp_path / "slurm.conf").write_text("ClusterName=theirs")
    status, output = call(
        REPOSITORY / "tools" / "slurm-testbed.sh", command, DECDPO_SLURM_DIR=str(tmp_path)
    )
    assert status == 2 and "remedy: " in output and str(tmp_path) in output
    assert [path.name for path in tmp_path.iterdir()] == ["slurm.conf"]
