"""Train a cell under ``mpirun``, as an ordinary run of the program that can be resumed."""

import sys
from pathlib import Path

from decdpo.comm.mpi.mpirun import run
from decdpo.errors import STOPPED_EARLY, EnvironmentFault

_OF_ONE_PROCESS = ("metrics.jsonl", "start.json", "gradients.json")
"""What a cell leaves behind that was killed while it was trained without ``mpirun``."""


def train_cell(folder: Path, ranks: int) -> None:
    """Train, or resume, the cell whose configuration is ``folder``.toml, in ``folder``.

    Raises ``EnvironmentFault`` with the end of what it printed if it fails, ``KeyboardInterrupt``
    if it was asked to stop and has saved.
    """
    program = [sys.executable, "-m", "decdpo"]
    if (folder / "config.toml").exists():
        program += ["resume", str(folder)]
    else:
        for name in _OF_ONE_PROCESS:
            (folder / name).unlink(missing_ok=True)
        # Nobody looks at the curves of one cell.
        plain = ["--set", "log.figure=false"]
        program += ["train", f"{folder}.toml", "--out", str(folder), *plain]
    log = folder / "mpirun.log"
    with log.open("w") as stream:
        code = run(ranks, program, stdout=stream, stderr=stream)
    if code == STOPPED_EARLY:
        raise KeyboardInterrupt
    if code:
        said = log.read_text(errors="replace").strip()[-1000:]
        raise EnvironmentFault(f"mpirun with {ranks} ranks ended with status {code}:\n{said}")
