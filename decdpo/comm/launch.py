"""How this process was started: alone, or as one of several copies. Imports no MPI."""

import os
import time
from collections.abc import Mapping

GRACE = 10.0
"""Seconds by which the start of the copies may differ, at most, for one to speak for all."""
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "FLUX_TASK_RANK", "PMIX_RANK")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "FLUX_JOB_SIZE")


def launched_by_mpi(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return how many copies of this program a launcher started, None if it was started alone.

    Knows mpirun of Open MPI, MPICH, Intel MPI and MVAPICH, flux, and srun. A batch script's own
    shell, or ``srun -n 1`` without a process manager, counts as alone.
    """
    for name in _SIZES:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdigit() and (int(tasks) > 1 or "PMIX_RANK" in environ):
        return int(tasks)
    return None


def let_the_first_tell(environ: Mapping[str, str] = os.environ) -> None:
    """Wait, in all copies but the first, before an error that all of them are likely to meet.

    The launcher ends the others when the first one ends. They cannot ask each other, and the fault
    may be of one node: so a copy that is not ended tells its error, too.
    """
    rank = next((environ[name] for name in _RANKS if name in environ), "0")
    if rank != "0":
        time.sleep(GRACE)
