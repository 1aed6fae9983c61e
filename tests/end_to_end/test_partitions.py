"""A process on a node that cannot be reached is lost to the others, and does nothing any more.

Nodes are network namespaces of this machine (``tools/scaling.py``).
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import scaling
from limits import HANG, await_that
from namespaces import can_make_nodes

from decdpo.errors import EnvironmentFault

CUT = 1
"""The node that is cut off: the others are more, and have the lowest rank."""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_make_nodes(), reason="needs root, iproute2 and network namespaces"
    ),
]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[scaling.Nodes]:
    """Return three nodes; at the end nothing runs on them."""
    made = scaling.Nodes(3, 400, tmp_path)
    try:
        with made.up():
            yield made
            for node in range(made.count):
                for pid in pids(made, node, ""):
                    os.kill(pid, signal.SIGKILL)
    except EnvironmentFault as fault:
        pytest.skip(f"this kernel makes no such nodes: {fault}")


def pids(nodes: scaling.Nodes, node: int, word: str = "decdpo") -> list[int]:
    """Return the processes of a node that are Python with ``word`` in their command."""
    listed = ["ip", "netns", "pids", nodes.names[node]]
    found = subprocess.run(listed, capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if is_ours(Path(f"/proc/{pid}/cmdline"), word)]


def is_ours(command: Path, word: str) -> bool:
    try:
        words = command.read_bytes().split(b"\0")
    except OSError:
        return False
    return not word or (b"python" in words[0] and word.encode() in words)


def losses(said: Path) -> int:
    return len(re.findall("lost (?:in|before) round", said.read_text()))


@pytest.mark.parametrize("how, on_loss", [("link", "survive"), ("stopped", "adopt")])
def test_who_cannot_be_reached_is_lost_and_never_comes_back(how, on_loss, nodes, shell, config):
    run, said = shell.folder / "run", shell.folder / "said"
    command = nodes.command(
        "--with-ft", "ulfm", sys.executable, "-m", "decdpo", "train", str(config), "--out",
        str(run), "--set", f"faults.on_loss={on_loss}", "--set", "comm.timeout=8",
        "--set", "run.rounds=1000000", "--set", "log.every=50",
    )  # fmt: skip
    with said.open("w") as log:
        job = subprocess.Popen(command, cwd=shell.folder, stdout=log, stderr=log)
    try:
        metrics = run / "metrics.jsonl"
        await_that(
            lambda: job.poll() is not None
            or (metrics.exists() and metrics.read_text().count("\n") > 2),
            "the first rounds",
        )
        assert job.poll() is None, said.read_text()
        (lost,) = pids(nodes, CUT)
        if how == "link":
            subprocess.run(["ip", "link", "set", nodes.link(CUT), "down"], check=True)
        else:
            os.kill(lost, signal.SIGSTOP)
        await_that(lambda: losses(said) == 1, "the loss")
        assert f"process {CUT} (agents 3 to 5) (pid " in said.read_text()
        if how == "stopped":
            os.kill(lost, signal.SIGCONT)
        await_that(lambda: lost not in pids(nodes, CUT), "the end of the one that was lost")
        rounds = metrics.read_text().count("\n")
        await_that(lambda: metrics.read_text().count("\n") > rounds + 2, "rounds of the others")
        (run / "halt").touch()
        await_that(lambda: "is saved; continue with" in said.read_text(), "their end")
        if how == "stopped":
            # What a lost node would say is not to be waited for; here it can be heard.
            job.wait(timeout=HANG)
            assert f"process {CUT} (agents 3 to 5) ends: it cannot reach" in said.read_text()
    finally:
        job.kill()
        job.wait()
    assert losses(said) == 1, said.read_text()
    assert ("; adopted before round" in said.read_text()) is (on_loss == "adopt")
    shell("replay", run)
    left = 5 if on_loss == "survive" else 8
    assert f"of {left} agents every one has the same bits" in shell.said
