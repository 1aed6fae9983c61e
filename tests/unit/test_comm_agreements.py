"""Agreeing where to stop and calling the present, on ranks that are objects in this process."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from decdpo.comm.membership import Membership
from decdpo.comm.mpi import attendance
from decdpo.comm.mpi.attendance import Attendance
from decdpo.comm.mpi.stop import StopAgreement


class Net:
    """The messages in flight between ``size`` ranks, and their one all-gather."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.mail: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(size)]
        self.gathered: dict[int, np.ndarray] = {}


class Comm:
    """What the agreements use of a communicator."""

    def __init__(self, net: Net, rank: int) -> None:
        self.net, self.rank, self.size = net, rank, net.size

    def Isend(self, data: np.ndarray, rank: int, tag: int) -> object:
        self.net.mail[rank].append((tag, data.copy()))
        return object()

    def Iprobe(self, tag: int) -> bool:
        return any(tag == found for found, _ in self.net.mail[self.rank])

    def Recv(self, data: np.ndarray, tag: int) -> None:
        mail = self.net.mail[self.rank]
        place = next(k for k, (found, _) in enumerate(mail) if found == tag)
        data[:] = mail.pop(place)[1]

    def Iallgather(self, mine: np.ndarray, all: np.ndarray) -> Any:
        net = self.net
        net.gathered[self.rank] = mine.copy()

        class Request:
            def Test(self) -> bool:
                if len(net.gathered) < net.size:
                    return False
                for rank, part in net.gathered.items():
                    all[rank] = part
                return True

        return Request()


def agreements(size: int) -> list[StopAgreement]:
    net, calls = Net(size), Net(size)
    members = Membership.blocks(size, size)
    return [
        StopAgreement(Comm(net, rank), 5.0, Attendance(Comm(calls, rank), members), lambda: None)
        for rank in range(size)
    ]


@pytest.mark.parametrize("entered", [True, False])
def test_who_has_said_no_is_not_asked_to_have_stopped(entered: bool) -> None:
    """A token that is found in a save, before the next round begins, or where none is entered."""
    a, b = agreements(2)
    for agreement in (a, b):
        if entered:
            agreement.enter(49)
    assert not b.due(49)
    a.ask()
    a.poll()
    b.poll()
    assert not a.due(49), "the other one goes on to round 50"
    for agreement in (a, b):
        if entered:
            agreement.enter(50)
    assert a.due(50) and b.due(50)


def test_a_request_after_somebody_has_said_no_for_the_last_time_stops_nobody() -> None:
    a, b = agreements(2)
    assert not b.due(9)
    a.ask()
    a.poll()
    b.poll()
    assert not a.due(9)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> list[Attendance]:
    """Return what asks 4 ranks with 9 agents who is present."""
    monkeypatch.setattr(attendance, "GRACE", 0.3)
    net = Net(4)
    return [Attendance(Comm(net, rank), Membership.blocks(9, 4)) for rank in range(4)]


def test_only_who_does_not_wait_is_named(present: list[Attendance]) -> None:
    """Rank 0 gives up first, 1 gives up, 3 still waits for something else, 2 is missing."""
    over = threading.Event()
    said: dict[int, tuple[str, float]] = {}

    def give_up(rank: int) -> None:
        said[rank] = present[rank].stalled("the record of round 13", 2.0), time.perf_counter()

    def wait() -> None:
        while not over.wait(1e-3):
            present[3].poll()

    threads = [threading.Thread(target=give_up, args=(rank,)) for rank in (0, 1)]
    waiting = threading.Thread(target=wait)
    for thread in (*threads, waiting):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    waiting.join()
    assert said[0][0] == said[1][0] == (
        "process 2 (agents 5 to 6) did not join the others in the record of round 13 for 2.0 s"
    )
    assert said[1][1] - said[0][1] > 0.15, "the first one tells it"


def test_all_may_be_missing_or_none(present: list[Attendance]) -> None:
    text = present[2].stalled("a step", 1.0)
    assert text.startswith("process 0 (agents 0 to 2), process 1 (agents 3 to 4) and process 3 (")
    for rank in (0, 1, 3):
        present[rank].poll()
    assert present[2].absent() == []
    assert "no process is missing" in present[2].stalled("a step", 1.0)


def test_a_long_list_of_the_missing_is_cut() -> None:
    calls = Attendance(Comm(Net(20), 0), Membership.blocks(20, 20))
    text = calls._name(list(range(1, 20)))
    assert text.startswith("process 1, process 2") and text.endswith("process 8 and 11 more")
