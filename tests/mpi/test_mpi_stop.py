"""Stopping at a common round, whoever asks and whenever."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from graph_rows import N, graph_row
from limits import HANG

pytestmark = pytest.mark.mpi
ROUNDS = 60


@pytest.fixture
def on_signal() -> Iterator[Any]:
    """Install a handler of SIGUSR1 for one test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, lambda *_: handler())
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("trial", range(12))
def test_all_stop_at_the_end_of_one_round(on_signal: Any, trial: int) -> None:
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    world = mpi.connect(N, timeout=HANG, transport="p2p" if trial % 2 else "auto")
    on_signal(world.request_stop)
    common = np.random.default_rng(trial)
    size = boot.start()
    askers = common.permutation(size)[: 1 + trial % size]
    rounds = common.integers(0, ROUNDS, size)
    kind = trial % 3
    mine = np.random.default_rng([trial, world.rank])
    exchange = world.exchange(50, torch.float32)
    xs = {i: torch.zeros(50) for i in world.local_agents}
    stopped = ROUNDS - 1
    for t in range(ROUNDS):
        for i, x in xs.items():
            exchange.start(i, t, graph_row(i, kind), x)
        if mine.random() < 0.2:
            time.sleep(0.004 * mine.random())
        if world.rank in askers and t == rounds[world.rank]:
            os.kill(os.getpid(), signal.SIGUSR1)
        exchange.collect(t)
        for i, x in xs.items():
            exchange.inbox(i, t).displace(x)
        if world.stop_due(t):
            stopped = t
            break
    ends = set(world.collect({i: stopped for i in world.local_agents}).values())
    exchange.close()
    world.close()
    assert len(ends) == 1
    assert ends.pop() >= min(rounds[rank] for rank in askers)


@pytest.mark.parametrize("purpose", ["save", "record"])
@pytest.mark.parametrize("coupled", [True, False])
def test_who_meets_the_request_between_rounds_stops_with_the_others(
    purpose: str, coupled: bool
) -> None:
    """The others have passed round 4's end and wait in a save, or in the next round's record."""
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    if boot.start() == 1:
        pytest.skip("one rank")
    world = mpi.connect(N, timeout=HANG)
    exchange = world.exchange(50, torch.float32)
    stopped = -1
    for t in range(20):
        for i in world.local_agents if coupled else ():
            exchange.start(i, t, graph_row(i, 0), torch.zeros(50))
        exchange.collect(t)
        for i in world.local_agents if coupled else ():
            exchange.inbox(i, t).settle()
        if purpose == "record" and t in (2, 5):
            world.collect({i: t for i in world.local_agents})
        if t == 4 and world.is_root:
            time.sleep(0.1)
            world.request_stop()
        stop = world.stop_due(t)
        if purpose == "save" and (stop or t == 4):
            world.collect({i: t for i in world.local_agents})
        if stop:
            stopped = t
            break
    ends = set(world.collect({i: stopped for i in world.local_agents}).values())
    exchange.close()
    world.close()
    assert ends == {5}


def test_a_request_that_comes_too_late_leaves_nothing_behind(on_signal: Any) -> None:
    """One rank asks after its last round, when the others may be closing already."""
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    for asker in range(boot.start()):
        world = mpi.connect(N, timeout=HANG)
        on_signal(world.request_stop)
        # Yes, too, is right: another rank may have asked by the time this one gets here.
        world.stop_due(0)
        if world.rank == asker:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.001)
        world.collect({i: 0 for i in world.local_agents})
        world.close()


def test_a_request_before_the_first_round_stops_soon_after_it(on_signal: Any) -> None:
    from decdpo.comm.mpi import world as mpi

    world = mpi.connect(N, timeout=HANG)
    if world.is_root:
        world.request_stop()
    exchange = world.exchange(10, torch.float32)
    for t in range(40, 80):
        for i in world.local_agents:
            exchange.start(i, t, graph_row(i, 1), torch.zeros(10))
        exchange.collect(t)
        for i in world.local_agents:
            exchange.inbox(i, t).settle()
        if world.stop_due(t):
            break
    ends = set(world.collect({i: t for i in world.local_agents}).values())
    world.close()
    assert len(ends) == 1 and 40 <= ends.pop() <= 44
