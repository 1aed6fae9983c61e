"""The line of progress: what it says, how wide it is, and what takes long."""

import io
import os
import pty
import struct
import subprocess
import sys
import time
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest
from limits import HANG

from decdpo import progress as module
from decdpo.progress import Progress, Working

RECORD = {
    "round": 2, "loss": 0.69314, "consensus_distance": 1.2345e-12,
    "heldout/average/accuracy": 0.61234,
}  # fmt: skip


def shown(mode, *steps, last=400, every=0.0, monkeypatch):
    """Return what is written for the (done, record) steps."""
    monkeypatch.setattr(module, "EVERY", every)
    stream = io.StringIO()
    progress = Progress(0, last, enabled=True, mode=mode, stream=stream)
    for done, record in steps:
        progress._shown = 0.0
        progress.show(done, record)
    progress.close()
    return stream.getvalue()


def test_a_batch_log_gets_plain_lines_and_the_last_round():
    stream = io.StringIO()
    progress = Progress(0, 3, enabled=True, stream=stream)
    for done in (1, 2, 3):
        progress.show(done, {"loss": 0.5})
    progress.close()
    assert stream.getvalue() == "round 3/3  loss 0.5  0:00 left\n"


def test_values_are_shown_once_in_a_log_and_with_their_round(monkeypatch):
    said = shown("lines", (2, RECORD), (3, RECORD), (4, RECORD), monkeypatch=monkeypatch)
    first, second, third = said.splitlines()
    assert first.startswith("round 2/400  loss 0.6931  consensus") and "(round" not in first
    assert "loss" not in second and "loss" not in third
    said = shown("lines", (5, RECORD), monkeypatch=monkeypatch)
    assert "held-out accuracy 0.6123  (round 2)  0:" in said


def test_a_bar_names_the_round_of_older_values(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = shown("bar", (2, RECORD), (5, RECORD), monkeypatch=monkeypatch)
    first, second = said.split("\r\x1b[K")[1:]
    assert "[........................] round 2/400  loss 0.6931" in first and "(round" not in first
    assert "(round 2)" in second and said.endswith("\n")


@pytest.mark.parametrize("columns", [1, 2, 9, 20, 33, 40, 60, 80, 81, 100, 104, 105, 132, 300])
def test_the_live_line_fits_any_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    said = shown(
        "bar", (7, RECORD), (399_999, RECORD), (400_000, RECORD), last=400_000,
        monkeypatch=monkeypatch,
    )  # fmt: skip
    lines = said.rstrip("\n").split("\r\x1b[K")[1:]
    assert len(lines) == 3 and all(len(line) < columns for line in lines)
    if columns >= 20:
        assert "399999" in lines[1]
    if columns >= 80:
        assert "loss 0.6931" in lines[1] and "left" in lines[1]
    if columns >= 132:
        assert "held-out accuracy" in lines[1] and "[####" in lines[1]


def test_a_terminal_that_names_no_width_counts_as_80_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    master, slave = pty.openpty()
    for columns, widest in ((0, 79), (30, 29), (50, 49)):
        ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with os.fdopen(os.dup(slave), "w") as stream:
            progress = Progress(0, 10**6, enabled=True, stream=stream)
            progress._shown = 0.0
            progress.show(10**6 - 1, RECORD)
            progress.close()
        said = os.read(master, 10_000).decode().strip("\r\n")
        assert said.startswith("\r\x1b[K") or said.startswith("\x1b[K")
        line = said.rpartition("\x1b[K")[2]
        assert 0 < len(line) <= widest
    os.close(slave)
    os.close(master)


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        progress = Progress(0, 1, enabled=True, stream=stream)
        progress.show(1, {})
        progress.close()
    assert os.read(master, 100).decode() == "round 1/1  0:00 left\r\n"
    os.close(master)


def test_only_one_process_speaks_and_none_if_none_is_wanted(monkeypatch):
    stream = io.StringIO()
    Progress(0, 1, enabled=False, stream=stream).show(1, {})
    assert stream.getvalue() == ""
    assert shown("none", (400, RECORD), monkeypatch=monkeypatch) == ""


def test_the_terminal_of_a_launcher_is_found(tmp_path):
    """A process whose stderr is a pipe asks the mpirun that started it."""
    launcher = tmp_path / "mpirun"
    launcher.symlink_to(sys.executable)
    ask = "import sys; from decdpo.progress import terminal_of; print(terminal_of(sys.stderr))"
    start = (
        "import subprocess, sys; print(subprocess.run([sys.argv[1], '-c', sys.argv[2]], "
        "stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True).stdout)"
    )
    found = {}
    for program in (str(launcher), sys.executable):
        master, slave = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [program, "-c", start, sys.executable, ask], stderr=slave, stdout=subprocess.PIPE,
            text=True, env=environment, timeout=HANG,
        )  # fmt: skip
        found[program] = done.stdout.strip()
        os.close(slave)
        os.close(master)
    assert found[str(launcher)].isdigit() and found[sys.executable] == "None"


def test_what_takes_long_is_said_with_how_far_it_is():
    lines = []
    working = Working(lines.append, every=0.2)
    with working("measuring"):
        working.at(3, 4)
        time.sleep(0.5)
    with working("a short thing"):
        pass
    time.sleep(0.3)
    working.close()
    assert lines and all(line.startswith("measuring: ") for line in lines)
    assert lines[0].endswith(" s so far, 3 of 4 done")


def test_a_note_does_not_stand_on_the_live_line(monkeypatch):
    stream = io.StringIO()
    progress = Progress(0, 4, enabled=True, mode="bar", stream=stream)
    progress._shown = 0.0
    progress.show(2, {})
    progress.note("measuring: 10 s so far")
    progress.close()
    assert stream.getvalue().endswith("\r\x1b[Kmeasuring: 10 s so far\n")
