"""Staged exchanges: the order of copies, sends and mixing, with a device that answers late."""

import time
from typing import Any

import pytest
import torch
from graph_rows import N, ring_row
from limits import HANG
from recorded import Recorded

from decdpo.comm.late.staleness import StaleExchange
from decdpo.comm.links.slots import aligned
from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.messages import BLOCK
from decdpo.topology.row import Row

pytestmark = pytest.mark.mpi


class Late:
    """A copy that happens when its end is asked for the fourth time, or waited for."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._copy = (target, source)
        self._asked = 0
        self._done = False

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 3:
            self.synchronize()
        return self._done

    def synchronize(self) -> None:
        if not self._done:
            self._copy[0].copy_(self._copy[1])
            self._done = True


class LateCopies:
    """Stands in for a GPU: "cpu:0" is the device, "cpu" the host."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def enter(self) -> None:
        pass

    def allocate(self, nbytes: int) -> torch.Tensor:
        return aligned(nbytes)

    def follow(self) -> None:
        pass

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Late:
        return Late(target, source)

    def lead(self, done: Late) -> None:
        done.synchronize()


def rounds(world: Any, device: str, size: int) -> dict[int, torch.Tensor]:
    exchange = world.exchange(size, torch.float32, device=device)
    xs = {}
    for i in world.local_agents:
        xs[i] = torch.randn(size, generator=torch.Generator().manual_seed(i)).to(device)
    for t in range(6):
        for i, x in xs.items():
            exchange.start(i, t, ring_row(i), x)
            x *= 1.5
        exchange.collect(t)
        for i, x in xs.items():
            inbox = exchange.inbox(i, t)
            inbox.displace(x)
    exchange.close()
    return xs


@pytest.mark.parametrize("progress", ["thread", "none"])
@pytest.mark.parametrize("size", [7, 3 * BLOCK + 1])
def test_staging_gives_the_bits_of_one_process(
    monkeypatch: pytest.MonkeyPatch, progress: str, size: int
) -> None:
    from decdpo.comm.mpi import world as mpi

    monkeypatch.setattr(mpi, "Copies", LateCopies)
    world = mpi.connect(N, timeout=HANG, progress=progress, chunk_bytes=1)
    found = rounds(world, "cpu:0", size)
    world.close()
    expected = rounds(LocalWorld(N), "cpu", size)
    assert all(torch.equal(x, expected[i]) for i, x in found.items())


@pytest.mark.parametrize("size", [7, 3 * BLOCK + 1])
def test_a_rewired_round_is_sent_from_the_device_again(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    from decdpo.comm.mpi import world as mpi

    monkeypatch.setattr(mpi, "Copies", LateCopies)
    world = mpi.connect(N, timeout=HANG, chunk_bytes=1)
    found = rewired(world, "cpu:0", size)
    world.close()
    expected = rewired(LocalWorld(N), "cpu", size)
    assert all(torch.equal(x, expected[i]) for i, x in found.items())


def rewired(world: Any, device: str, size: int) -> dict[int, torch.Tensor]:
    """Start rounds on a ring, or among nobody, and mix over the complete graph."""
    exchange = world.exchange(size, torch.float32, device=device, whole=True)
    xs = {}
    for i in world.local_agents:
        xs[i] = torch.randn(size, generator=torch.Generator().manual_seed(i)).to(device)
    others = {i: tuple(j for j in range(N) if j != i) for i in xs}
    rows = {i: Row(1 / N, js, (1 / N,) * (N - 1), js) for i, js in others.items()}
    for t in range(4):
        for i, x in xs.items():
            exchange.start(i, t, ring_row(i) if t % 2 else Row(1.0, (), (), ()), x)
        assert exchange.collect(t)
        exchange.rewire(world.members, rows)
        assert exchange.collect(t)
        for i, x in xs.items():
            exchange.inbox(i, t).displace(x)
            x *= 1.5
    exchange.close()
    return xs


@pytest.mark.parametrize("progress", ["thread", "none"])
@pytest.mark.parametrize("size", [7, 3 * BLOCK + 1])
def test_arrivals_on_a_device_are_replayed_in_one_process(
    monkeypatch: pytest.MonkeyPatch, progress: str, size: int
) -> None:
    from decdpo.comm.mpi import world as mpi

    monkeypatch.setattr(mpi, "Copies", LateCopies)
    world = mpi.connect(N, timeout=HANG, progress=progress, chunk_bytes=1)
    exchange = world.exchange(size, torch.float32, device="cpu:0", max_age=2)
    ages: dict[int, list[list[int]]] = {i: [] for i in world.local_agents}

    def start(i: int) -> torch.Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(i))

    xs = {i: start(i).to("cpu:0") for i in world.local_agents}
    for t in range(8):
        for i, x in xs.items():
            exchange.start(i, t, ring_row(i), x)
        time.sleep(0.01 * ((t + world.rank) % 3 == 0))
        exchange.collect(t)
        for i, x in xs.items():
            inbox = exchange.inbox(i, t)
            inbox.displace(x)
            ages[i].append([message.age for message in inbox.messages])
    exchange.close()
    recorded = world.collect(ages)
    world.close()
    alone = StaleExchange(LocalWorld(N).exchange(size, torch.float32), Recorded(recorded), 2)
    again = {i: start(i) for i in range(N)}
    for t in range(8):
        for i, x in again.items():
            alone.start(i, t, ring_row(i), x)
        for i, x in again.items():
            alone.inbox(i, t).displace(x)
    assert all(torch.equal(x, again[i]) for i, x in xs.items())


@pytest.mark.parametrize("size", [7, 3 * BLOCK + 1])
def test_the_mean_leaves_a_server_that_nobody_calls_again(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """One agent a rank and no thread: what waits for the device must go before ``finish`` ends."""
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    monkeypatch.setattr(mpi, "Copies", LateCopies)
    n = boot.start()
    world = mpi.connect(n, timeout=HANG, progress="none", chunk_bytes=1)
    up, down = (world.exchange(size, torch.float32, device="cpu:0") for _ in range(2))
    exchange = ServerExchange(up, down, all_hear=n)
    everybody = Row(0.0, tuple(range(n)), (1.0 / n,) * n, ())
    (me,) = world.local_agents
    for t in range(3):
        exchange.start(me, t, everybody, torch.full((size,), float(me + t), device="cpu:0"))
        exchange.collect(t)
        inbox = exchange.inbox(me, t)
        inbox.settle()
        (message,) = inbox.messages
        assert torch.allclose(message.body, torch.tensor(t + (n - 1) / 2))
        world.collect({me: t})
    exchange.close()
    world.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", [7, 3 * BLOCK + 1, 5_000_000])
def test_a_gpu_gives_the_bits_of_one_process(size: int) -> None:
    from decdpo.comm.mpi import world as mpi

    world = mpi.connect(N, timeout=HANG)
    found = rounds(world, "cuda:0", size)
    world.close()
    expected = rounds(LocalWorld(N), "cuda:0", size)
    assert all(torch.equal(x, expected[i]) for i, x in found.items())
