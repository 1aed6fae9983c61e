"""Starting under mpirun, with a stand-in for it that fails as often as a test wants."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from limits import HANG

from decdpo.comm.mpi import mpirun
from decdpo.errors import EnvironmentFault

STAND_IN = """#!/bin/sh
echo start >>"{folder}/starts"
if [ "$(wc -l <"{folder}/starts")" -le {failures} ]; then
    echo "The PMIx server's listener thread failed to start. We cannot continue." >&2
    exit 1
fi
while [ "$1" != -n ]; do shift; done
shift 2
exec "$@"
"""


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file with a line for each start of a stand-in that fails twice."""
    return stand_in(tmp_path, monkeypatch, 2)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> Path:
    """Put a stand-in in mpirun's place whose first starts fail."""
    script = folder / "mpirun"
    script.write_text(STAND_IN.format(folder=folder, failures=failures))
    script.chmod(0o755)
    monkeypatch.setattr(mpirun, "find_mpirun", lambda: str(script))
    monkeypatch.setattr(mpirun, "PAUSE", 0.01)
    return folder / "starts"


def test_a_start_that_began_nothing_is_made_again(
    starts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = mpirun.capture(2, ["/bin/echo", "begun"], limit=HANG)
    assert (code, out) == (0, "begun\n") and "listener thread" in err
    assert len(starts.read_text().split()) == 3
    assert capfd.readouterr().err.count("ended with status 1 before it started anything") == 2


def test_one_may_wait_for_its_begin_alone(
    starts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launched = mpirun.Launch(2, ["/bin/sh", "-c", "exit 5"], options=["--with-ft", "ulfm"])
    assert launched.begin(HANG) and len(starts.read_text().split()) == 3
    assert launched.wait(HANG) == 5


def test_what_never_begins_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = stand_in(tmp_path, monkeypatch, 100)
    launched = mpirun.Launch(2, ["true"])
    assert not launched.begin(HANG) and len(starts.read_text().split()) == mpirun.STARTS
    launched.kill()


def test_it_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = stand_in(tmp_path, monkeypatch, 100)
    code, out, err = mpirun.capture(2, ["/bin/echo", "begun"], limit=HANG)
    assert (code, out) == (1, "") and len(starts.read_text().split()) == mpirun.STARTS
    assert "listener thread" in err


@pytest.mark.parametrize("program", [["/bin/sh", "-c", "exit 3"], ["/nowhere/program"]])
def test_a_program_that_began_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: list[str]
) -> None:
    starts = stand_in(tmp_path, monkeypatch, 0)
    code, _, _ = mpirun.capture(2, program, limit=HANG)
    assert code == (3 if "exit 3" in program else 127)
    assert len(starts.read_text().split()) == 1


def test_the_limit_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, 0)
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        mpirun.run(2, ["sleep", "600"], limit=0.3)
    assert time.monotonic() - began < HANG


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_reaches_the_ranks_as_usr1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stand_in(tmp_path, monkeypatch, 0)
    before = signal.getsignal(number)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    program = "trap 'exit 85' USR1; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2; done"
    assert mpirun.run(2, ["/bin/sh", "-c", program], limit=HANG) == 85
    timer.join()
    assert signal.getsignal(number) == before


def test_the_real_one_is_beside_this_python_or_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EnvironmentFault, match="no mpirun"):
        mpirun.find_mpirun()
    for folder in (tmp_path / "bin", tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "mpirun").write_text("")
        (folder / "mpirun").chmod(0o755)
        assert mpirun.find_mpirun() == str(folder / "mpirun")


def test_ranks_get_one_thread_and_this_pythons_path() -> None:
    settings = mpirun.environment({"MORE": "1"})
    assert settings["OMP_NUM_THREADS"] == "1" and settings["MORE"] == "1"
    assert str(Path(mpirun.__file__).parents[3]) in settings["PYTHONPATH"].split(os.pathsep)
    words = mpirun.command_of(3, ["a", "b"])[1:]
    assert words == ["--oversubscribe", "--bind-to", "none", "-n", "3", "a", "b"]


def test_the_command_line_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mpirun.main(["-n", "2"])
    assert "name a program" in capsys.readouterr().err


def test_mpirun_of_mpich_gets_no_options_of_open_mpi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, said, hydra in (("a", "HYDRA build details:", True), ("b", "mpirun (Open MPI)", True),
                              ("c", "", False)):  # fmt: skip
        (tmp_path / name).mkdir()
        path = tmp_path / name / "mpirun"
        path.write_text(f"#!/bin/sh\necho '{said}'\n")
        path.chmod(0o755)
        if hydra:
            path.with_name("hydra_pmi_proxy").touch()
        monkeypatch.setattr(mpirun, "find_mpirun", lambda path=path: str(path))
        found.append(mpirun.command_of(2, ["p"])[1:])
    open_mpi = ["--oversubscribe", "--bind-to", "none", "-n", "2", "p"]
    assert found == [["-n", "2", "p"], open_mpi, open_mpi]
