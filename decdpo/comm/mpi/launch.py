"""How this process was started: alone, or as one of several copies. Imports no MPI."""

import os
import time
from collections.abc import Mapping

GRACE = 10.0
"""Seconds by which the start of the copies may differ, at most, for one to report for all."""
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "FLUX_TASK_RANK", "PMIX_RANK")
_LAUNCHERS = ("mpirun", "mpiexec", "prterun", "orterun")
_GENERATIONS = 6
"""How far up mpirun may be: between it and this process there may be shells."""
_STEP = "SLURM_STEP_NUM_TASKS"
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "FLUX_JOB_SIZE")


def launched_by_mpi(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return how many copies of this program a launcher started, None if it was started alone.

    Knows mpirun of Open MPI, MPICH, Intel MPI and MVAPICH, flux, and srun. A batch script's own
    shell, or ``srun -n 1`` without a process manager, counts as alone.
    """
    name = launcher_variable(environ)
    return None if name is None else int(environ[name])


def launcher_variable(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of the environment variable that counts the copies, None if there is none."""
    for name in _SIZES:
        if _is_number(environ.get(name, "")):
            return name
    tasks = environ.get(_STEP, "")
    if _is_number(tasks) and (int(tasks) > 1 or "PMIX_RANK" in environ):
        return _STEP
    return None


def copies_started(environ: Mapping[str, str] = os.environ) -> str:
    """Say how many copies were started, and which variable says so; empty if it was alone."""
    name = launcher_variable(environ)
    if name is None:
        return ""
    return f"{name}={environ[name]} says that {environ[name]} copies of this program were started"


def how_to_say_alone(environ: Mapping[str, str] = os.environ) -> str:
    """Say what to do if the variables come from another program, such as an enclosing job."""
    names = [name for name in (*_SIZES, _STEP, *_RANKS) if name in environ]
    return f"if it was started alone, pass --world local, or unset {' '.join(names)}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def let_the_first_report(environ: Mapping[str, str] = os.environ) -> None:
    """Wait, in all copies but the first, before an error that all of them are likely to meet.

    The launcher ends the others when the first one ends. They cannot ask each other, and the fault
    may be of one node: so a copy that is not ended reports its error, too.
    """
    if not is_first(environ):
        time.sleep(GRACE)


def is_first(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether this is the first of several copies, or the only one."""
    return number_of_copy(environ) == "0"


def number_of_copy(environ: Mapping[str, str] = os.environ) -> str:
    """Return which of several copies this is, as the launcher counts them from 0."""
    return next((environ[name] for name in _RANKS if name in environ), "0")


def print_past_the_launcher() -> None:
    """Let this process's standard error be that of the mpirun above it, if it is on this node.

    Open MPI's mpirun forwards nothing any more once it has begun to end its processes.
    """
    pid = os.getppid()
    for _ in range(_GENERATIONS):
        try:
            name, _, parent = _process(pid)
            if name in _LAUNCHERS:
                theirs = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
                os.dup2(theirs, 2)
                os.close(theirs)
                return
        except (OSError, ValueError, IndexError):
            return
        pid = parent


def _process(pid: int) -> tuple[str, str, int]:
    """Return the name, the state and the parent of a process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        head, _, rest = file.read().rpartition(")")
    state, parent = rest.split()[:2]
    return head.partition("(")[2], state, int(parent)
