"""How this process was started: alone, or as one of several copies. Imports no MPI."""

import os
from collections.abc import Mapping

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
