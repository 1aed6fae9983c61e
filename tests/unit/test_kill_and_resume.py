"""`tools/kill_and_resume.py` and what it shares with the chaos tools: a kill meets its aim."""

import os
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import chaos
import kill_and_resume
import pytest
from limits import HANG, await_that

CHILD = "import os, time; os.fork() or os.setpgid(0, 0); time.sleep(600)"
"""A program with a child in a process group of its own, as mpirun's are."""


class Script:
    """A run whose moments pass as it is looked at: each look makes the next one happen."""

    def __init__(self, *moments):
        self.moments = list(moments)
        self.pid = 0

    def poll(self):
        if not self.moments:
            return 0
        self.moments.pop(0)()
        return None


class Thrice(random.Random):
    """Chance that wants three writes, and then no time."""

    def randint(self, least, most):
        assert least <= 3 <= most
        return 3

    def uniform(self, least, most):
        return 0.0


@pytest.fixture
def checkpoints(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def make(checkpoints):
    """Change the folder of checkpoints: begin or end the writing of a round."""

    def begin(round):
        return (checkpoints / f".writing-round_{round:06d}").mkdir

    def end(round):
        return (checkpoints / f".writing-round_{round:06d}").rmdir

    return SimpleNamespace(begin=begin, end=end, nothing=lambda: None)


def test_what_a_kill_left_is_no_write_of_the_next_start(checkpoints, make):
    make.begin(4)()
    writes = chaos.Writes(checkpoints.parent)
    assert writes.now() == set()
    make.begin(8)()
    assert writes.now() == {".writing-round_000008"}
    # The start removes what was left, and comes to the same round.
    make.end(4)()
    assert writes.now() == {".writing-round_000008"}
    make.begin(4)()
    assert writes.now() == {".writing-round_000004", ".writing-round_000008"}


def test_a_kill_waits_for_a_write_of_its_own_start(checkpoints, make):
    make.begin(4)()
    third = make.begin(12)
    moments = [make.nothing, make.nothing, make.end(4), make.begin(4), make.end(4), make.begin(8)]
    moments += [make.end(8), third, make.end(12), make.begin(16), make.end(16)]
    run = Script(*moments)
    victim = kill_and_resume.Victim(checkpoints, checkpoints.parent, [], 1.0, True)
    writes = chaos.Writes(checkpoints.parent)
    victim.await_moment(SimpleNamespace(process=run), writes, Thrice())
    # Of the writes that were begun after what was left had gone, it is the third.
    assert len(moments) - len(run.moments) == moments.index(third) + 1 and not victim.fault


@pytest.fixture
def leader():
    process = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True)
    await_that(lambda: len(chaos.session(process.pid)) == 2, "a child")
    yield process
    for pid in chaos.session(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait(HANG)


def test_every_process_of_a_session_is_ended_when_it_is_said_to_be(leader):
    chaos.end_session(leader)
    assert chaos.session(leader.pid) == [] and leader.returncode == -signal.SIGKILL


def test_a_process_that_was_begun_after_the_look_is_ended_too(leader, monkeypatch):
    real, looks = chaos.session, []

    def late(pid):
        looks.append(pid)
        return [pid] if len(looks) == 1 else real(pid)

    monkeypatch.setattr(chaos, "session", late)
    chaos.end_session(leader)
    assert real(leader.pid) == [] and len(looks) > 1
