"""Processes of the job: who is killed or cut off, and which side of a parted network goes on."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decdpo.comm.mpi import processes, watchdog
from decdpo.comm.mpi.processes import Process, addresses, cut_off
from decdpo.comm.mpi.watchdog import ASK, END, QUIT, Watchdog


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection of this process with itself, by TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        yield near, far


def test_the_addresses_of_a_host_are_those_that_others_can_reach() -> None:
    found = addresses()
    assert "127.0.0.1" not in found and "::1" not in found
    words = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    assert {word for word in words if ":" not in word} <= set(found)


def test_connections_to_a_host_are_shut_and_no_others(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = ends
    cut_off(["192.0.2.77"])
    near.sendall(b"still here")
    assert far.recv(10) == b"still here"
    cut_off(["127.0.0.1"])
    assert far.recv(1) == b"" and near.recv(1) == b""


def test_files_and_their_locks_are_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        before = sorted(os.listdir("/proc/self/fd"))
        cut_off(["192.0.2.77"])
        assert sorted(os.listdir("/proc/self/fd")) == before
        code = (
            "import fcntl, sys\n"
            "try: fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except OSError: print('locked')"
        )
        tried = [sys.executable, "-c", code, file.name]
        assert subprocess.run(tried, capture_output=True, text=True).stdout == "locked\n"


def test_what_is_ones_own_address_is_nobody_elses(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a bridge for containers, which is called the same on every host."""
    monkeypatch.setattr(processes, "addresses", lambda: ["127.0.0.1"])
    near, far = ends
    cut_off(["127.0.0.1"])
    near.sendall(b"still here")
    assert far.recv(10) == b"still here"


def test_a_process_is_killed_by_its_own_host_alone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = Process.this()
    other = Process(here.host, child.pid, processes._start_of(child.pid))
    assert not other._replace(host="another").kill() and child.poll() is None
    assert other._replace(start="before").kill() and child.poll() is None
    assert other.kill()
    child.communicate()
    assert child.returncode < 0


class Ended(Exception):
    pass


class Comm:
    """Holds what was sent, and gives what was put into it."""

    def __init__(self, rank: int) -> None:
        self.rank, self.sent = rank, []  # type: ignore[var-annotated]

    def Get_rank(self) -> int:
        return self.rank


HOSTS = ("a", "a", "b", "b", "c")


def watching(rank: int, monkeypatch: pytest.MonkeyPatch, alive: tuple[int, ...]) -> Any:
    """Return the watchdog of a rank of five on three hosts, and the addresses that it cuts off."""
    known = [Process(host, 1, "", [f"address of {host}"]) for host in HOSTS]
    cut: list[str] = []

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(watchdog, "abort", end)
    monkeypatch.setattr(watchdog, "leave", end)
    monkeypatch.setattr(watchdog, "cut_off", lambda theirs: cut.extend(theirs))
    dog = Watchdog(
        Comm(rank), known, lambda: alive, lambda r: f"process {r}", lambda comm: None,
        lambda fault: False,
    )  # fmt: skip
    return dog, cut


@pytest.mark.parametrize("here, gone, goes_on", [
    ((0, 1, 2, 3), (4,), True),
    ((4,), (0, 1, 2, 3), False),
    ((0, 1), (2, 3), True),      # as many, and the lowest
    ((2, 3), (0, 1), False),
    ((2, 3), (4,), True),
    ((4, 2, 3), (0, 1), True),
    ((0, 4), (2, 3, 1), True),   # 1 is on the host of 0, which knows that it is gone
])  # fmt: skip
def test_the_larger_side_goes_on_or_that_of_the_lowest(
    here: tuple[int, ...], gone: tuple[int, ...], goes_on: bool, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    dog, cut = watching(here[0], monkeypatch, tuple(range(5)))
    if goes_on:
        dog.separate(here, gone)
        near = {HOSTS[rank] for rank in here}
        assert set(cut) == {f"address of {HOSTS[r]}" for r in gone if HOSTS[r] not in near}
        return
    with pytest.raises(Ended, match="75"):
        dog.separate(here, gone)
    assert not cut
    said = capfd.readouterr().err
    assert f"process {here[0]} ends: it cannot reach process {gone[0]}" in said


def test_both_sides_never_go_on() -> None:
    """Of a network parted in two, whichever hosts are on which side."""
    patch = pytest.MonkeyPatch()
    try:
        for cut in ({"a"}, {"b"}, {"c"}):
            left = tuple(r for r in range(5) if HOSTS[r] in cut)
            right = tuple(r for r in range(5) if HOSTS[r] not in cut)
            went_on = 0
            for here, gone in ((left, right), (right, left)):
                try:
                    watching(here[0], patch, tuple(range(5)))[0].separate(here, gone)
                    went_on += 1
                except Ended:
                    pass
            assert went_on == 1
    finally:
        patch.undo()


def test_nothing_is_done_for_a_rank_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    dog, _ = watching(0, monkeypatch, (0, 1, 2, 3))
    sent: list[tuple[int, int, int]] = []
    monkeypatch.setattr(dog, "_send", lambda *words: sent.append(words))
    killed: list[int] = []
    monkeypatch.setattr(Process, "kill", lambda self: bool(killed.append(self.pid)))
    for kind in (ASK, END, QUIT):
        dog._take(kind, 1, source=4)
    assert not sent and not killed
    dog._take(ASK, 0, source=3)
    assert len(sent) == 1
    with pytest.raises(Ended):
        dog._take(QUIT, 75, source=3)
