"""Starting programs under mpirun: found, dressed, and started again where it did not start itself.

    python -m decdpo.comm.mpi.mpirun -n 4 [--limit SECONDS] PROGRAM [ARGUMENT]...

runs a program on four ranks of this machine. On a busy machine Open MPI's mpirun now and then fails
before it has started anything ("The PMIx server's listener thread failed to start"); such a start
is made again. SIGTERM and Ctrl-C reach the ranks as SIGUSR1: a training run then saves and ends.
"""

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import IO

from decdpo.errors import EnvironmentFault
from decdpo.signals import TWICE

STARTS = 3
"""How often a start is made, at most."""
PAUSE = 2.0
"""Seconds before the second start; twice as many before the third."""
MARKER = "DECDPO_RANK_STARTED"
"""Environment variable: the file that the first process of a launch makes before anything else."""
_BEGIN = f': >"${MARKER}"; exec "$@"'

Stream = IO[str] | IO[bytes] | int | None


def find_mpirun() -> str:
    """Return the path of mpirun: the one beside this Python, or else on the PATH.

    Raises ``EnvironmentFault`` if there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise EnvironmentFault(
            "no mpirun beside this Python or on the PATH", "pip install 'decdpo[mpi]'"
        )
    return found


def command_of(ranks: int, program: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """Return the command that runs ``program`` on so many ranks of this machine.

    Ranks may share a core, and their threads may use any. options : more of mpirun's.
    """
    mpirun = find_mpirun()
    shared = [] if is_hydra(mpirun) else ["--oversubscribe", "--bind-to", "none"]
    return [mpirun, *options, *shared, "-n", str(ranks), *program]


@cache
def is_hydra(mpirun: str) -> bool:
    """Say whether ``mpirun`` is that of MPICH, which counts no cores and binds no rank unasked."""
    path = Path(mpirun).resolve()
    if "hydra" in path.name or not (path.parent / "hydra_pmi_proxy").exists():
        return "hydra" in path.name
    # Both MPIs may lie in one folder.
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
    return "HYDRA" in said.stdout


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment for ranks: one thread each, this Python's path, also root.

    more : variables on top of it.
    """
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if os.geteuid() == 0:
        settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return settings | dict(more or {})


class Launch:
    """One program on several ranks, in a process group of its own. ``pid`` is that of mpirun.

    options : of mpirun. stdout, stderr, cwd : as of ``subprocess.Popen``. more : variables of the
    environment.

    Raises ``EnvironmentFault`` if there is no mpirun.
    """

    def __init__(
        self,
        ranks: int,
        program: Sequence[str],
        *,
        options: Sequence[str] = (),
        stdout: Stream = None,
        stderr: Stream = None,
        more: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="decdpo-start-")
        self._marker = Path(self._folder.name) / "started"
        self._command = command_of(ranks, ["/bin/sh", "-c", _BEGIN, "rank", *program], options)
        self._stdout, self._stderr, self._cwd = stdout, stderr, cwd
        self._environment = environment({**(more or {}), MARKER: str(self._marker)})
        self._starts = 0
        self._begun = False
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self.process = subprocess.Popen(
            self._command, env=self._environment, cwd=self._cwd, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self._stdout, stderr=self._stderr,
        )  # fmt: skip

    def begin(self, limit: float) -> bool:
        """Wait until a process of the program has begun; say whether one has.

        Starts again as ``wait`` does; gives up after ``limit`` seconds.
        """
        end = time.monotonic() + limit
        while not self._has_begun() and time.monotonic() < end:
            code = self.process.poll()
            if code is not None and not self._again(code):
                break
            time.sleep(0.005)
        return self._has_begun()

    def wait(self, limit: float | None = None) -> int:
        """Wait for the end and return the status of mpirun.

        Raises ``subprocess.TimeoutExpired`` after ``limit`` seconds. Starts again, up to three
        times in all, if mpirun failed before a process of the program began.
        """
        end = None if limit is None else time.monotonic() + limit
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            code = self.process.wait(left)
            if not self._again(code):
                self._folder.cleanup()
                return code

    def _again(self, code: int) -> bool:
        """Start again after mpirun ended with ``code``, if that may help; say whether it was."""
        if code <= 0 or self._has_begun() or self._starts >= STARTS:
            return False
        pause = PAUSE * self._starts
        print(
            f"decdpo: mpirun ended with status {code} before it started anything; "
            f"again in {pause:.0f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        time.sleep(pause)
        self._start()
        return True

    def _has_begun(self) -> bool:
        self._begun = self._begun or self._marker.exists()
        return self._begun

    def stop(self) -> None:
        """Ask the ranks to stop: a run saves at the end of its round and ends with status 85."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End all ranks, and wait for that."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self._folder.cleanup()


def run(
    ranks: int,
    program: Sequence[str],
    *,
    limit: float | None = None,
    stdout: Stream = None,
    stderr: Stream = None,
    more: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> int:
    """Run ``program`` on so many ranks to its end and return the status of mpirun.

    SIGTERM and Ctrl-C ask the ranks to stop; a second one ends them. Raises ``EnvironmentFault`` if
    there is no mpirun, ``subprocess.TimeoutExpired`` after ``limit`` seconds, when all are ended.
    """
    launched = Launch(ranks, program, stdout=stdout, stderr=stderr, more=more, cwd=cwd)
    first = math.inf

    def pass_on(*_: int | FrameType | None) -> None:
        nonlocal first
        if time.monotonic() - first > TWICE:
            launched.process.terminate()
            return
        first = min(first, time.monotonic())
        launched.stop()

    main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) if main_thread else ()
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        return launched.wait(limit)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        launched.kill()


def capture(
    ranks: int,
    program: Sequence[str],
    *,
    limit: float,
    more: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[int, str, str]:
    """Run ``program`` as ``run`` does; return the status, standard output and standard error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = run(ranks, program, limit=limit, stdout=out, stderr=err, more=more, cwd=cwd)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return code, texts[0], texts[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m decdpo.comm.mpi.mpirun", description="Run a program under mpirun.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("-n", type=int, required=True, metavar="RANKS", help="processes")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="end it after so long")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="PROGRAM ...")
    args = parser.parse_args(argv)
    if not args.program:
        parser.error("name a program")
    try:
        return run(args.n, args.program, limit=args.limit)
    except EnvironmentFault as fault:
        print(f"decdpo: error: {fault}", file=sys.stderr)
        return fault.exit_code
    except subprocess.TimeoutExpired:
        print(f"decdpo: error: still at work after {args.limit:g} s, ended", file=sys.stderr)
        return 124


if __name__ == "__main__":
    sys.exit(main())
