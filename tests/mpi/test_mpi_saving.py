"""Saving at common rounds, whenever the root asks, however often, beside a request to stop."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from graph_rows import N, graph_row
from limits import HANG

pytestmark = pytest.mark.mpi
ROUNDS = 60


@pytest.mark.parametrize("trial", range(12))
def test_all_save_at_the_same_rounds(trial: int, agree: Any) -> None:
    from decdpo.comm.mpi import world as mpi

    world = mpi.connect(N, timeout=HANG, transport="p2p" if trial % 2 else "auto")
    common = np.random.default_rng(trial)
    asked = set(common.integers(0, ROUNDS, 1 + trial).tolist())
    stopper = trial % 4 if trial % 3 == 2 else None
    mine = np.random.default_rng([trial, world.rank])
    exchange = world.exchange(50, torch.float32)
    xs = {i: torch.zeros(50) for i in world.local_agents}
    saved, requests, outstanding, stopped = [], 0, False, ROUNDS - 1
    for t in range(ROUNDS):
        for i, x in xs.items():
            exchange.start(i, t, graph_row(i, trial % 3), x)
        if mine.random() < 0.2:
            time.sleep(0.004 * mine.random())
        exchange.collect(t)
        for i, x in xs.items():
            exchange.inbox(i, t).displace(x)
        if world.is_root and t in asked and not outstanding:
            world.request_save()
            requests, outstanding = requests + 1, True
        if stopper in xs and t == ROUNDS // 2:
            world.request_stop()
        stop = world.stop_due(t)
        if world.save_due(t):
            saved.append(t)
            outstanding = False
            world.collect({i: t for i in world.local_agents})
        if stop:
            stopped = t
            break
    every = world.collect({i: [saved, stopped] for i in world.local_agents})
    exchange.close()
    world.close()
    agree(len({str(value) for value in every.values()}) == 1, str(every))
    if world.is_root:
        # The last request may be of a round that never comes.
        assert requests - len(saved) == outstanding and requests > 0
        assert not saved or saved[0] >= min(asked)


def test_only_the_root_asks(agree: Any) -> None:
    from decdpo.comm.mpi import world as mpi

    world = mpi.connect(N, timeout=HANG)
    with agree:
        if not world.is_root:
            with pytest.raises(ValueError, match="only the root"):
                world.request_save()
    world.close()


def test_a_request_that_nobody_answers_any_more_leaves_nothing_behind() -> None:
    from decdpo.comm.mpi import world as mpi

    for told in (False, True):
        world = mpi.connect(N, timeout=HANG)
        world.save_due(0)
        if world.is_root:
            world.request_save()
            if told:
                time.sleep(0.002)
                world.save_due(1)
        world.close()
