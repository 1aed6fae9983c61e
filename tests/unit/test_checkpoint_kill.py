"""A SIGKILL at any moment leaves the newest committed checkpoint loadable."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch
from limits import HANG
from torch import Tensor

from decdpo.checkpoint.format import WRITING, committed
from decdpo.checkpoint.inspect import verify
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.local import LocalWorld

KILLS = 25
AGENTS = 4
SIZE = 30_000


@dataclass
class State:
    x: Tensor
    steps: int


# Waits for a line, then forks a process that saves for ever: importing torch once is enough.
NURSERY = """
import os, sys, signal, torch
from test_checkpoint_kill import AGENTS, advance, fresh, open_store
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while sys.stdin.readline():
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    store, states = open_store(sys.argv[1]), fresh()
    done = store.load(states) or 0
    print("ready", flush=True)
    while True:
        done += 1
        advance(states, done)
        store.save(done, states)
"""


def fresh():
    return {agent: State(torch.zeros(SIZE), 0) for agent in range(AGENTS)}


def advance(states, done):
    for agent, state in states.items():
        state.x.fill_(done + agent / 8)
        state.steps = done


def open_store(folder):
    return CheckpointStore(folder, world=LocalWorld(AGENTS), keep=2, identity={"kind": "test"})


def test_the_newest_committed_checkpoint_survives_every_kill(tmp_path):
    folder = tmp_path / "checkpoints"
    paths = [os.path.dirname(__file__), *sys.path]
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert nursery.stdin and nursery.stdout
    moments, last, during_a_write = random.Random(7), 0, 0
    try:
        for _ in range(KILLS):
            print("next", file=nursery.stdin, flush=True)
            child = {nursery.stdout.readline().strip(), nursery.stdout.readline().strip()}
            assert "ready" in child
            pid = int((child - {"ready"}).pop())
            time.sleep(moments.uniform(0, 0.25))
            os.kill(pid, signal.SIGKILL)
            while os.path.exists(f"/proc/{pid}"):
                time.sleep(0.001)
            present = list(committed(folder)) if folder.exists() else []
            assert not present or present[-1] >= last, "a committed checkpoint was lost"
            during_a_write += any(entry.name.startswith(WRITING) for entry in folder.iterdir())
            states = fresh()
            found = open_store(folder).load(states)
            assert found == (present[-1] if present else None)
            last = found or 0
            for agent, state in states.items():
                assert state.steps == last and state.x.eq(last + agent / 8 if last else 0).all()
            for checkpoint in committed(folder).values():
                assert verify(checkpoint) == []
            assert len(present) <= 3, "more than are kept and the one just committed"
            assert all(entry.name.startswith("round_") for entry in folder.iterdir())
    finally:
        nursery.stdin.close()
        nursery.stdout.close()
        nursery.wait(HANG)
    assert last > 5, "the children never saved anything"
    assert during_a_write > 3, "no kill met a write: the test has no power"


class Crash(BaseException):
    """The process ends here: no handler of the store may run on."""


@pytest.mark.parametrize("round", [3, 2])
def test_no_step_of_a_save_is_a_bad_moment(tmp_path, monkeypatch, round):
    """End the process before each system call in turn, for a new round and for a repeated one."""

    class Unthreaded(LocalWorld):
        def side_channel(self):
            return None

    def attempt(folder, steps):
        """Save ``round`` beside rounds 1 and 2, crash before step ``steps``; say whether it did."""
        shutil.copytree(tmp_path / "start", folder)
        store = CheckpointStore(folder, world=Unthreaded(AGENTS), identity={"kind": "test"})
        left = [steps]

        def crashing(call):
            def before(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
                return call(*args, **kwargs)

            return before

        states = fresh()
        advance(states, 9)
        with monkeypatch.context() as patch:
            for module, name in (
                (os, "rename"),
                (os, "fsync"),
                (os, "rmdir"),
                (os, "unlink"),
                (os, "mkdir"),
            ):
                patch.setattr(module, name, crashing(getattr(module, name)))
            try:
                store.save(round, states)
            except Crash:
                return True
        return False

    first = open_store(tmp_path / "start")
    for done in (1, 2):
        states = fresh()
        advance(states, done)
        first.save(done, states)
    first.flush()
    steps, outcomes = 0, set()
    while attempt(tmp_path / f"crash{steps}", steps):
        folder = tmp_path / f"crash{steps}"
        states = fresh()
        found = open_store(folder).load(states)
        assert (found, states[0].steps) in {(2, 2), (round, 9)}, f"lost at step {steps}"
        assert all(entry.name.startswith("round_") for entry in folder.iterdir())
        assert [verify(checkpoint) for checkpoint in committed(folder).values()] == [[]] * len(
            committed(folder)
        )
        outcomes.add(states[0].steps)
        steps += 1
    assert steps > 8 and outcomes == {2, 9}
