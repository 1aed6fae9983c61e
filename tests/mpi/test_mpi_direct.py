"""Vectors handed to MPI where they lie on a device: the device works late, MPI does not wait."""

import json
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from limits import HANG
from recorded import Recorded

from decdpo.comm.late.staleness import StaleExchange
from decdpo.comm.links.slots import aligned
from decdpo.comm.local import LocalWorld
from decdpo.comm.mixing import Received
from decdpo.comm.mpi import cuda_aware
from decdpo.errors import EnvironmentFault
from decdpo.messages import BLOCK
from decdpo.topology.row import Row
from decdpo.topology.schedule import make_schedule

pytestmark = pytest.mark.mpi
N = 8
ROUNDS = 7


class Mark:
    """The end of what a ``LateStream`` holds now; reached when asked for the fourth time."""

    def __init__(self, stream: "LateStream", end: int) -> None:
        self._stream = stream
        self._end = end
        self._asked = 0

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 3:
            self.synchronize()
        return self._stream.done >= self._end

    def synchronize(self) -> None:
        self._stream.work_until(self._end)


class LateStream:
    """Stands in for a GPU's stream: "cpu:0" is the device, and all it is told waits for a mark."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.done = 0
        self.threads: set[int] = set()
        self._told = 0
        self._work: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()

    def enter(self) -> None:
        self.threads.add(threading.get_ident())

    def allocate(self, nbytes: int) -> torch.Tensor:
        return aligned(nbytes).fill_(255)

    def tell(self, work: Callable[[], object]) -> None:
        self._told += 1
        self._work.append(work)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Mark:
        self.tell(partial(target.copy_, source))
        return self.mark()

    def mark(self) -> Mark:
        return Mark(self, self._told)

    def work_until(self, end: int) -> None:
        with self._lock:
            while self.done < end:
                self._work.popleft()()
                self.done += 1


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return ``mpi.connect`` on a machine whose MPI calls itself CUDA-aware, with late streams."""
    from decdpo.comm.mpi import world as mpi

    made = []

    def make(stream: type = LateStream, **options: Any) -> Any:
        monkeypatch.setattr(mpi, "Stream", stream)
        monkeypatch.setattr(cuda_aware, "cuda_support", lambda MPI: True)
        made.append(mpi.connect(N, **{"timeout": 20.0, "chunk_bytes": 1, **options}))
        return made[-1]

    yield make
    for world in made:
        world.close()


def trained(world: Any, graph: str, size: int, **options: Any) -> dict[int, torch.Tensor]:
    """Exchange and change vectors for some rounds; the device is told, not waited for."""
    schedule = make_schedule(graph, "auto", N)
    exchange = world.exchange(size, torch.float32, **options)
    stream = getattr(getattr(exchange, "memory", None), "gpu", None)
    do = stream.tell if isinstance(stream, LateStream) else lambda work: work()
    device = options.get("device", "cpu")
    xs = {
        i: torch.randn(size, generator=torch.Generator().manual_seed(i)).to(device)
        for i in world.local_agents
    }
    for t in range(ROUNDS):
        mixing = schedule.mixing(t)
        for i, x in xs.items():
            exchange.start(i, t, mixing.row(i), x)
            do(partial(x.mul_, 1.5))
        exchange.collect(t)
        for i, x in xs.items():
            inbox = exchange.inbox(i, t)
            inbox.settle()
            do(partial(Received(inbox.sent, inbox.messages).displace, x))
    exchange.close()
    if isinstance(stream, LateStream):
        stream.mark().synchronize()
    return xs


def equal(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> bool:
    return all(torch.equal(x.cpu(), expected[i].cpu()) for i, x in found.items())


@pytest.mark.parametrize("progress", ["thread", "none"])
@pytest.mark.parametrize("size", [7, 2 * BLOCK + 1])
@pytest.mark.parametrize("graph", ["ring", "complete", "exponential", "one_peer_exponential"])
def test_the_bits_are_those_of_the_host_path(
    connect: Any, graph: str, size: int, progress: str
) -> None:
    world = connect(progress=progress)
    found = trained(world, graph, size, device="cpu:0", staging="device")
    assert equal(found, trained(LocalWorld(N), graph, size))
    assert equal(found, trained(world, graph, size))


@pytest.mark.parametrize("size", [7, 2 * BLOCK + 1])
def test_a_rewired_round_is_sent_from_the_device_again(connect: Any, size: int) -> None:
    world = connect()
    expected = rewired(LocalWorld(N), size)
    assert equal(rewired(world, size, device="cpu:0", staging="device"), expected)


def rewired(world: Any, size: int, **options: Any) -> dict[int, torch.Tensor]:
    """Start rounds on a ring and mix over the complete graph."""
    ring, complete = (make_schedule(g, "auto", N).mixing(0).row for g in ("ring", "complete"))
    exchange = world.exchange(size, torch.float32, whole=True, **options)
    stream = getattr(getattr(exchange, "memory", None), "gpu", None)
    do = stream.tell if isinstance(stream, LateStream) else lambda work: work()
    xs = {
        i: torch.randn(size, generator=torch.Generator().manual_seed(i))
        for i in world.local_agents
    }
    for t in range(4):
        for i, x in xs.items():
            exchange.start(i, t, ring(i), x)
        assert exchange.collect(t)
        exchange.rewire(world.members, {i: complete(i) for i in xs})
        assert exchange.collect(t)
        for i, x in xs.items():
            inbox = exchange.inbox(i, t)
            inbox.settle()
            do(partial(Received(inbox.sent, inbox.messages).displace, x))
    exchange.close()
    if isinstance(stream, LateStream):
        stream.mark().synchronize()
    return xs


@pytest.mark.parametrize("progress", ["thread", "none"])
@pytest.mark.parametrize("size", [7, 2 * BLOCK + 1])
def test_arrivals_on_a_device_are_replayed_in_one_process(
    connect: Any, size: int, progress: str
) -> None:
    world = connect(progress=progress)
    row = make_schedule("ring", "auto", N).mixing(0).row
    exchange = world.exchange(
        size, torch.float32, device="cpu:0", staging="device", max_age=2
    )
    stream = exchange.memory.gpu
    ages: dict[int, list[list[int]]] = {i: [] for i in world.local_agents}

    def start(i: int) -> torch.Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(i))

    xs = {i: start(i) for i in world.local_agents}
    for t in range(ROUNDS):
        for i, x in xs.items():
            exchange.start(i, t, row(i), x)
        time.sleep(0.01 * ((t + world.rank) % 3 == 0))
        exchange.collect(t)
        for i, x in xs.items():
            inbox = exchange.inbox(i, t)
            inbox.settle()
            stream.tell(partial(Received(inbox.sent, inbox.messages).displace, x))
            ages[i].append([message.age for message in inbox.messages])
    exchange.close()
    stream.mark().synchronize()
    alone = StaleExchange(
        LocalWorld(N).exchange(size, torch.float32), Recorded(world.collect(ages)), 2
    )
    again = {i: start(i) for i in range(N)}
    for t in range(ROUNDS):
        for i, x in again.items():
            alone.start(i, t, row(i), x)
        for i, x in again.items():
            alone.inbox(i, t).displace(x)
    assert equal(xs, again)


def test_chunks_travel_as_they_are_counted(connect: Any) -> None:
    world = connect()
    exchange = world.exchange(2 * BLOCK, torch.float64, device="cpu:0", staging="device")
    row = make_schedule("ring", "auto", N).mixing(0).row
    for i in world.local_agents:
        exchange.start(i, 0, row(i), torch.full((2 * BLOCK,), float(i), dtype=torch.float64))
    exchange.collect(0)
    for i in world.local_agents:
        inbox = exchange.inbox(i, 0)
        parts = list(inbox.arrivals)
        exchange.memory.gpu.mark().synchronize()
        assert [message.body[-1].item() for message in inbox.messages] == list(row(i).sources)
        if not set(row(i).sources) <= set(world.local_agents):
            assert parts == [slice(0, 0), slice(0, BLOCK), slice(BLOCK, 2 * BLOCK)]
    messages = exchange.counters.messages_sent
    assert exchange.counters.bytes_sent == messages * (64 + 16 * BLOCK)
    exchange.close()


class Unasked(LateStream):
    """A device that does nothing until the host waits for it."""

    def mark(self) -> Mark:
        end = super().mark()
        setattr(end, "query", lambda: False)
        return end


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("size", [5, BLOCK + 1])
def test_a_slot_is_kept_until_the_device_has_read_it(connect: Any, size: int) -> None:
    """One half of the agents only speaks, and is far ahead of the other half's device."""
    world = connect(Unasked)
    # In a ring, agents would wait for one another for ever.
    world._rehearsed = True
    exchange = world.exchange(size, torch.float32, device="cpu:0", staging="device")
    half, heard = N // 2, {i: torch.zeros(size) for i in world.local_agents}
    for t in range(ROUNDS):
        for i in world.local_agents:
            row = Row(0.5, (i + half,), (0.5,), ()) if i < half else Row(1.0, (), (), (i - half,))
            exchange.start(i, t, row, torch.full((size,), 10.0**t + i))
        exchange.collect(t)
        for i in world.local_agents:
            inbox = exchange.inbox(i, t)
            inbox.settle()
            if i < half:
                exchange.memory.gpu.tell(partial(heard[i].add_, inbox.messages[0].body))
    exchange.memory.gpu.mark().synchronize()
    exchange.close()
    total = sum(10.0**t for t in range(ROUNDS))
    for i in range(half):
        if i in heard:
            assert (heard[i] == total + ROUNDS * (i + half)).all()


@pytest.mark.mpi(min_size=2)
def test_the_progress_thread_enters_the_device_first(connect: Any) -> None:
    world = connect()
    exchange = world.exchange(1, torch.float32, device="cpu:0", staging="device")
    probes = world._progress.probes
    assert probes[0] == exchange.memory.gpu.enter and probes[-1] == exchange.memory.pump
    exchange.close()
    assert len(probes) == 1
    assert threading.get_ident() not in exchange.memory.gpu.threads


@pytest.mark.mpi(min_size=2)
def test_an_mpi_without_cuda_is_refused_by_all() -> None:
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    world = mpi.connect(N, timeout=HANG)
    if cuda_aware.cuda_support(boot.library()):
        world.close()
        pytest.skip("this MPI is CUDA-aware")
    with pytest.raises(EnvironmentFault, match="CUDA-aware") as caught:
        world.exchange(10, torch.float32, device="cpu:0", staging="device")
    assert caught.value.collective
    assert "device.staging = 'device' needs an MPI that takes GPU memory" in caught.value.what
    for word in ('device.staging = "host"', "ompi_info", "UCX_TLS"):
        assert word in caught.value.remedy
    # The world is as good as before.
    assert world.collect({i: i for i in world.local_agents}) == {i: i for i in range(N)}
    world.exchange(10, torch.float32, device="cpu", staging="device").close()
    world.close()


class Damaging(LateStream):
    """A device of which one rank's long messages lose a bit each."""

    rank = -1

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Mark:
        end = super().copy(target, source)
        if self.rank == 1 and target.numel() == BLOCK:
            self.tell(lambda: target[17:18].bitwise_xor_(4))
            end = self.mark()
        return end


class Failing(LateStream):
    """A device that breaks on one rank, and says so to every question from then on."""

    rank = -1
    broken = False

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Mark:
        if self.rank == 1 and target.numel():
            self.broken = True
            self.work_until(0)
        return super().copy(target, source)

    def work_until(self, end: int) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        super().work_until(end)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (Damaging, rf"a message of {BLOCK + 1} bytes from agent \d to \d came with 3 wrong bytes"),
        (Failing, "a message of 3 bytes .* failed: RuntimeError: CUDA error: an illegal memory"),
    ],
)
def test_a_rehearsal_that_fails_anywhere_fails_everywhere(
    connect: Any, monkeypatch: pytest.MonkeyPatch, stream: type, expected: str
) -> None:
    monkeypatch.setattr(cuda_aware, "TIMEOUT", 1.0)
    world = connect(stream)
    monkeypatch.setattr(stream, "rank", world.rank)
    with pytest.raises(EnvironmentFault, match=expected) as caught:
        world.exchange(10, torch.float32, device="cpu:0", staging="device")
    assert caught.value.collective and 'device.staging = "host"' in caught.value.remedy


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("able", [True, False])
def test_doctor_tells_and_tries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], able: bool
) -> None:
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi
    from decdpo.commands.machine import doctor
    from decdpo.session.job import Job

    monkeypatch.setattr(mpi, "Stream", LateStream)
    monkeypatch.setattr(cuda_aware, "cuda_support", lambda MPI: able)
    monkeypatch.setattr(Job, "device", lambda job, section: "cpu:0")
    wanted = Namespace(json=True, device="auto", share_gpu=False, staging="device",
                       config=None, set=[], threads=1)  # fmt: skip
    status = doctor.run(wanted)
    assert status == (0 if able else 2)
    rank = boot.library().COMM_WORLD.Get_rank()
    printed = capsys.readouterr().out
    assert bool(printed) == (rank == 0)
    if printed:
        checks = {check["check"]: check for check in json.loads(printed)["checks"]}
        says = "says that it is CUDA-aware" if able else "says that it is not CUDA-aware"
        assert checks["MPI"]["found"].endswith(says)
        assert checks["staging"]["ok"] is able
        said = "carries GPU memory" if able else "needs an MPI that takes GPU memory"
        assert said in checks["staging"]["found"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 32 << 20])
@pytest.mark.parametrize("size", [7, 3 * BLOCK + 1, 5_000_000])
@pytest.mark.parametrize("graph", ["ring", "one_peer_exponential"])
def test_a_gpu_gives_the_bits_of_one_process(graph: str, size: int, chunk_bytes: int) -> None:
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    torch.cuda.set_device(0)
    world = mpi.connect(N, timeout=HANG, chunk_bytes=chunk_bytes)
    try:
        if not cuda_aware.cuda_support(boot.library()):
            pytest.skip("this MPI is not CUDA-aware")
        expected = trained(LocalWorld(N), graph, size, device="cuda:0")
        host = trained(world, graph, size, device="cuda:0")
        found = trained(world, graph, size, device="cuda:0", staging="device")
    finally:
        world.close()
    assert equal(host, expected)
    assert equal(found, expected)
