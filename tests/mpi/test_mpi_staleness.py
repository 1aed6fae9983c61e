"""Late messages between ranks: the bits of one process, and what is mixed as it comes."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from limits import HANG
from torch import Tensor

from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.wrappers.recall import Recalling, told_since
from decdpo.comm.late.delays import RecordedDelays, SeededDelays
from decdpo.comm.late.staleness import AgeLog, StaleExchange
from decdpo.comm.local import LocalWorld
from decdpo.errors import StallError
from decdpo.messages import BLOCK
from decdpo.params.optim import SGD
from decdpo.topology.schedule import make_schedule

pytestmark = pytest.mark.mpi
N, ROUNDS, AGE = 8, 14, 3


@pytest.fixture(params=["p2p", "small chunks", "window"])
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return N agents on the ranks of this job."""
    from decdpo.comm.mpi import world as mpi

    chunks = {"chunk_bytes": 1} if request.param == "small chunks" else {}
    transport = "window" if request.param == "window" else "p2p"
    made = mpi.connect(N, timeout=HANG, transport=transport, **chunks)
    yield made
    made.close()


def gradient(agent: int, t: int, x: Tensor) -> Tensor:
    """Return a noisy gradient of 1/2 ||x - c||^2 with the agent's own c."""
    centre = float(np.random.default_rng([agent, 7]).normal())
    noise = np.random.default_rng([agent, t]).random(x.numel(), dtype=np.float32)
    return x - centre + torch.from_numpy(noise) - 0.5


class Training:
    """DSGD on the local agents, round by round."""

    def __init__(self, world: Any, exchange: Any, size: int, depth: int, graph: str) -> None:
        schedule = make_schedule(graph, "auto", N)
        self.rows = {i: schedule.mixing(0).row(i) for i in world.local_agents}
        inner = Dsgd(SGD(), size)
        self.algorithm: Any = Recalling(inner, size, depth) if depth else inner
        self.states = {i: self.algorithm.init(torch.zeros(size)) for i in world.local_agents}
        self.exchange = exchange

    def round(self, t: int, pause: float = 0.0) -> None:
        for i, state in self.states.items():
            self.exchange.start(i, t, self.rows[i], self.algorithm.message(state))
        time.sleep(pause)
        for i, state in self.states.items():
            self.algorithm.local_step(state, gradient(i, t, state.x), 0.1)
        self.exchange.collect(t)
        for i, state in self.states.items():
            self.algorithm.mix(state, self.exchange.inbox(i, t))

    def bits(self) -> dict[int, Tensor]:
        return {i: state.x.view(torch.int32).clone() for i, state in self.states.items()}


def seeded(world: Any, size: int, graph: str) -> Training:
    exchange = StaleExchange(world.exchange(size, torch.float32), SeededDelays(5, AGE), AGE)
    return Training(world, exchange, size, AGE, graph)


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_seeded_delays_give_the_bits_of_one_process(world: Any, graph: str) -> None:
    there, alone = seeded(world, 300, graph), seeded(LocalWorld(N), 300, graph)
    for t in range(ROUNDS):
        there.round(t)
        alone.round(t)
    there.exchange.close()
    expected = alone.bits()
    assert all(torch.equal(x, expected[i]) for i, x in there.bits().items())
    counted = there.exchange.counters.ages
    assert counted[0] < sum(counted) and len(counted) == AGE + 1


def test_a_resumed_run_hears_the_old_messages_again(world: Any, agree: Any) -> None:
    first, again = seeded(world, 300, "ring"), seeded(world, 300, "ring")
    for t in range(6):
        first.round(t)
    for i, state in again.states.items():
        for name in ("x", "told"):
            getattr(state, name).copy_(getattr(first.states[i], name))
        state.rounds_told = 6
    again.exchange.recall(again.rows, {i: told_since(s) for i, s in again.states.items()})
    for t in range(6, 12):
        first.round(t)
        again.round(t)
    with agree:
        assert all(torch.equal(x, first.bits()[i]) for i, x in again.bits().items())
    first.exchange.close()
    again.exchange.close()


@pytest.mark.parametrize("graph", ["ring", "complete", "exponential"])
@pytest.mark.parametrize("size", [300, pytest.param(2 * BLOCK, marks=pytest.mark.slow)])
def test_arrivals_are_replayed_in_one_process(
    world: Any, tmp_path: Path, graph: str, size: int
) -> None:
    log = tmp_path / "ages"
    exchange = AgeLog(world.exchange(size, torch.float32, max_age=AGE), log)
    there = Training(world, exchange, size, 0, graph)
    for t in range(ROUNDS):
        slow = (t + world.rank) % 3 == 0
        there.round(t, pause=0.01 if slow else 0.0)
    exchange.close()
    counted = {i: there.exchange.counters.ages for i in world.local_agents[:1]}
    counted |= {i: [0] * (AGE + 1) for i in world.local_agents[1:]}
    ages = world.sum({i: np.array(c) for i, c in counted.items()})
    assert ages.sum() == ROUNDS * sum(
        len(make_schedule(graph, "auto", N).mixing(0).row(i).sources) for i in range(N)
    )
    lines = {i: (log / f"agent_{i:06d}.jsonl").read_text() for i in world.local_agents}
    everywhere = tmp_path / "all"
    everywhere.mkdir()
    for i, text in world.collect(lines).items():
        (everywhere / f"agent_{i:06d}.jsonl").write_text(text)
    alone = LocalWorld(N)
    delays = RecordedDelays(everywhere, range(N), AGE)
    replay = StaleExchange(alone.exchange(size, torch.float32), delays, AGE)
    again = Training(alone, replay, size, AGE, graph)
    for t in range(ROUNDS):
        again.round(t)
    expected = again.bits()
    assert all(torch.equal(x, expected[i]) for i, x in there.bits().items())


def test_a_fast_rank_runs_ahead_of_a_slow_one_but_not_too_far(world: Any, agree: Any) -> None:
    if world._comm.Get_size() < 2:
        pytest.skip("needs two ranks")
    exchange = world.exchange(50, torch.float32, max_age=AGE)
    run = Training(world, exchange, 50, 0, "complete")
    run.round(0)
    began = time.perf_counter()
    for t in range(1, 2 + AGE):
        run.round(t, pause=1.5 if world.rank == 0 and t == 1 else 0.0)
    ahead = time.perf_counter() - began
    run.round(2 + AGE)
    after = time.perf_counter() - began
    with agree:
        # All that others hear of rank 0 while it sleeps is its message of round 1.
        if world.rank > 0:
            assert ahead < 1.0 < after
            assert exchange.counters.ages[AGE] > 0
    exchange.close()


def test_a_neighbour_that_never_comes_is_named(agree: Any) -> None:
    from decdpo.comm.mpi import world as mpi

    world = mpi.connect(N, timeout=HANG, transport="p2p")
    if world._comm.Get_size() > 1:
        exchange = world.exchange(50, torch.float32, max_age=1)
        run = Training(world, exchange, 50, 0, "complete")
        with agree:
            if world.rank == 0:
                run.round(0)
                run.round(1)
            else:
                run.round(0)
        with agree:
            if world.rank == 0:
                world.set_timeout(2.0)
                with pytest.raises(StallError, match="waited .* s for agent .* in round 2"):
                    run.round(2)
    world.close()
