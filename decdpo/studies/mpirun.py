"""Train a cell under ``mpirun``, as an ordinary run of the program that can be resumed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from decdpo.errors import EnvironmentFault

_OF_ONE_PROCESS = ("metrics.jsonl", "start.json", "gradients.json")
"""What a cell leaves behind that was killed while it was trained without ``mpirun``."""


def find_mpirun() -> str:
    """Return the path of mpirun.

    Raises ``EnvironmentFault`` if there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise EnvironmentFault(
            "no mpirun beside this Python or on the PATH", "pip install 'decdpo[mpi]'"
        )
    return found


def train_cell(folder: Path, ranks: int) -> None:
    """Train, or resume, the cell whose configuration is ``folder``.toml, in ``folder``.

    Raises ``EnvironmentFault`` with the end of what it printed if it fails.
    """
    command = [find_mpirun(), "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    command += [sys.executable, "-m", "decdpo"]
    if (folder / "config.toml").exists():
        command += ["resume", str(folder)]
    else:
        for name in _OF_ONE_PROCESS:
            (folder / name).unlink(missing_ok=True)
        command += ["train", f"{folder}.toml", "--out", str(folder)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if os.geteuid() == 0:
        settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    log = folder / "mpirun.log"
    with log.open("w") as stream:
        code = subprocess.run(command, env=settings, stdout=stream, stderr=stream).returncode
    if code:
        said = log.read_text(errors="replace").strip()[-1000:]
        raise EnvironmentFault(f"mpirun with {ranks} ranks ended with status {code}:\n{said}")
