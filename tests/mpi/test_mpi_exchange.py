"""The exchange between ranks: what is sent, how far ranks may drift, what goes wrong and how."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from graph_rows import N, ring_row
from limits import HANG

from decdpo.comm.links.slots import HEADER
from decdpo.comm.membership import Membership
from decdpo.errors import ConfigError, EnvironmentFault, StallError
from decdpo.messages import BLOCK
from decdpo.topology.row import Row

pytestmark = pytest.mark.mpi


@pytest.fixture
def connect() -> Iterator[Any]:
    """Return ``mpi.connect`` with a short patience; what it made is closed in the end."""
    from decdpo.comm.mpi import world as mpi

    made = []

    def make(**options: Any) -> Any:
        made.append(mpi.connect(N, **{"timeout": 20.0, **options}))
        return made[-1]

    yield make
    for world in made:
        world.close()


def one_round(world: Any, exchange: Any, xs: dict[int, torch.Tensor], t: int) -> None:
    for i in world.local_agents:
        exchange.start(i, t, ring_row(i), xs[i])
    exchange.collect(t)
    for i in world.local_agents:
        exchange.inbox(i, t).displace(xs[i])


class Spy:
    """A communicator that writes down every call of it and every start of its requests."""

    def __init__(self, comm: Any, calls: Counter[str], sizes: list[int]) -> None:
        self._comm = comm
        self._calls = calls
        self._sizes = sizes

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._comm, name)
        if not callable(found):
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            self._calls[name] += 1
            made = found(*args, **kwargs)
            if name in ("Send_init", "Recv_init"):
                return SpiedRequest(made, name, args[0].nbytes, self)
            return made

        return called


class SpiedRequest:
    def __init__(self, request: Any, kind: str, nbytes: int, spy: Spy) -> None:
        self._request, self._kind, self._nbytes, self._spy = request, kind, nbytes, spy

    def Start(self) -> None:
        self._spy._calls[f"{self._kind}.Start"] += 1
        if self._kind == "Send_init":
            self._spy._sizes.append(self._nbytes)
        self._request.Start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def test_a_training_round_is_messages_to_neighbours_and_nothing_else(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from decdpo.comm.mpi import world as mpi

    calls: Counter[str] = Counter()
    sizes: list[int] = []
    plain = mpi.MpiWorld._duplicate
    monkeypatch.setattr(
        mpi.MpiWorld,
        "_duplicate",
        lambda self, comm: Spy(plain(self, getattr(comm, "_comm", comm)), calls, sizes),
    )
    world = connect(transport="p2p", progress="none", chunk_bytes=1)
    size = 2 * BLOCK
    exchange = world.exchange(size, torch.float32)
    xs = {i: torch.ones(size) for i in world.local_agents}
    one_round(world, exchange, xs, 0)
    one_round(world, exchange, xs, 1)
    calls.clear()
    sizes.clear()
    before = exchange.counters.messages_sent, exchange.counters.bytes_sent
    for t in range(2, 6):
        one_round(world, exchange, xs, t)
        assert not world.stop_due(t)
    here = set(world.local_agents)
    # One message per agent and destination rank: with two ranks both ends of a block may go there.
    rank_of = world.members.rank_of
    out = sum(
        len({rank_of(j) for j in ring_row(i).targets if j not in here}) for i in world.local_agents
    )
    chunks = len(exchange.format.parts)
    assert chunks == 2
    # Recv_init.Start gives slots back; Iprobe looks for a request to stop and moves no data.
    assert set(calls) <= {"Send_init.Start", "Recv_init.Start", "Iprobe"}
    assert calls["Send_init.Start"] == len(sizes) == 4 * chunks * out
    assert sum(sizes) == 4 * out * (HEADER + 4 * size)
    assert exchange.counters.messages_sent - before[0] == 4 * out
    assert exchange.counters.bytes_sent - before[1] == sum(sizes)


@pytest.mark.parametrize("transport", ["p2p", "window"])
def test_ranks_may_drift_apart(connect: Any, transport: str) -> None:
    world = connect(transport=transport, chunk_bytes=1)
    size = 2 * BLOCK + 1
    exchange = world.exchange(size, torch.float64)
    xs = {i: torch.full((size,), float(i), dtype=torch.float64) for i in world.local_agents}
    pauses = np.random.default_rng(world.rank)
    w = np.zeros((N, N))
    for i in range(N):
        row = ring_row(i)
        w[i, i], w[i, list(row.sources)] = row.own, row.weights
    for t in range(25):
        for i in world.local_agents:
            exchange.start(i, t, ring_row(i), xs[i])
            if pauses.random() < 0.1:
                time.sleep(0.02)
        exchange.collect(t)
        for i in world.local_agents:
            exchange.inbox(i, t).displace(xs[i])
    expected = np.linalg.matrix_power(w, 25) @ np.arange(N)
    for i, x in xs.items():
        np.testing.assert_allclose(x.numpy(), np.full(size, expected[i]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("transport", ["p2p", "window"])
def test_a_sender_cannot_overrun_its_listeners(connect: Any, transport: str) -> None:
    """Agent 0 sends, all others only listen, and are slow: every message is the right one."""
    world = connect(transport=transport)
    exchange = world.exchange(1000, torch.float32)
    tells, hears = Row(1.0, (), (), tuple(range(1, N))), Row(0.0, (0,), (1.0,), ())
    heard = []
    for t in range(12):
        for i in world.local_agents:
            message = torch.full((1000,), float(t)) if i == 0 else None
            exchange.start(i, t, tells if i == 0 else hears, message)
        exchange.collect(t)
        for i in world.local_agents:
            inbox = exchange.inbox(i, t)
            inbox.settle()
            if i:
                if not world.is_root:
                    time.sleep(0.003)
                heard.append(set(inbox.messages[0].body.tolist()) == {float(t)})
    assert all(heard) and len(heard) == 12 * len([i for i in world.local_agents if i])


def test_another_layout_is_refused_at_once(connect: Any, agree: Any) -> None:
    world = connect()
    digest = "a" * 64 if world.is_root else "b" * 64
    if len(world.local_agents) == N:
        pytest.skip("one rank")
    with pytest.raises(ConfigError, match="the vector to exchange differs: process"):
        world.exchange(10, torch.float32, digest=digest)


@pytest.mark.parametrize("transport", ["p2p", "window"])
def test_a_message_of_another_round_is_an_error(connect: Any, transport: str) -> None:
    world = connect(transport=transport)
    if len(world.local_agents) == N:
        pytest.skip("one rank")
    exchange = world.exchange(10, torch.float32)
    first, second = 0, N - 1
    # Agent 0 lives on the first rank, agent 7 on the last: they disagree on the round by two.
    for me, other, t in ((first, second, 4), (second, first, 6)):
        if me in world.local_agents:
            row = Row(0.5, (other,), (0.5,), (other,))
            exchange.start(me, t, row, torch.zeros(10))
    for me, other, t, theirs in ((first, second, 4, 6), (second, first, 6, 4)):
        if me in world.local_agents:
            exchange.collect(t)
            inbox = exchange.inbox(me, t)
            # In place, a reader that is ahead sees the writer's slot as one not yet written.
            if transport == "p2p" or t < theirs:
                with pytest.raises(EnvironmentFault, match=f"of round {theirs} where round {t}"):
                    inbox.settle()


def test_a_silent_neighbour_is_named(connect: Any) -> None:
    world = connect()
    if len(world.local_agents) == N:
        pytest.skip("one rank")
    exchange = world.exchange(10, torch.float32)
    if world.is_root:
        world.set_timeout(0.3)
        exchange.start(0, 9, Row(0.5, (N - 1,), (0.5,), ()), torch.zeros(10))
        exchange.collect(9)
        inbox = exchange.inbox(0, 9)
        with pytest.raises(StallError, match=rf"agent 0 waited \d+\.\d s for agent {N - 1} \("):
            inbox.settle()
        assert exchange.counters.wait_by_neighbour == {}
    else:
        time.sleep(0.6)


def test_who_waits_for_a_message_that_was_not_read_is_named(connect: Any) -> None:
    """A message that nobody has looked at is waited for before the next round."""
    world = connect(transport="p2p")
    if len(world.local_agents) == N:
        pytest.skip("one rank")
    exchange = world.exchange(10, torch.float32)
    if world.is_root:
        world.set_timeout(1.0)
        row = Row(0.5, (N - 1,), (0.5,), ())
        exchange.start(0, 0, row, torch.zeros(10))
        exchange.collect(0)
        exchange.inbox(0, 0)
        with pytest.raises(StallError, match=rf"agent 0 waited \d+\.\d s for agent {N - 1} \("):
            exchange.start(0, 1, row, torch.zeros(10))
    else:
        time.sleep(1.5)


@pytest.mark.parametrize("transport", ["p2p", "window"])
def test_a_round_goes_on_without_a_lost_rank(connect: Any, transport: str, agree: Any) -> None:
    """The last rank sends nothing: the others learn whom they miss, and mix among themselves."""
    world = connect(transport=transport)
    ranks = world.members.ranks
    if len(ranks) == 1:
        pytest.skip("one rank")
    exchange = world.exchange(10, torch.float64, whole=True)
    lost = world.members.agents_of(ranks[-1])
    alive = tuple(i for i in range(N) if i not in lost)
    members = Membership(1, alive, {i: world.members.rank_of(i) for i in alive})
    xs = {i: torch.full((10,), float(i), dtype=torch.float64) for i in world.local_agents}
    share = 1 / len(alive)
    world.set_timeout(1.0)
    with agree:
        if world.rank == ranks[-1]:
            time.sleep(2.5)
        else:
            for i, x in xs.items():
                exchange.start(i, 0, ring_row(i), x)
            near = {j for i in xs for j in ring_row(i).sources} & set(lost)
            assert exchange.collect(0) is (not near)
            assert exchange.missing(0) == tuple(sorted(near))
            # Who misses nobody is here a second before the others.
            world.set_timeout(HANG)
            others = {i: tuple(j for j in alive if j != i) for i in xs}
            rows = {i: Row(share, js, (share,) * len(js), js) for i, js in others.items()}
            exchange.rewire(members, rows)
            assert exchange.collect(0) and exchange.missing(0) == ()
            for i, x in xs.items():
                exchange.inbox(i, 0).displace(x)
            # They go on: nothing waits for what the lost one should have taken or sent.
            for t in range(1, 5):
                for i, x in xs.items():
                    exchange.start(i, t, rows[i], x)
                assert exchange.collect(t)
                for i, x in xs.items():
                    exchange.inbox(i, t).displace(x)
            for x in xs.values():
                np.testing.assert_allclose(x.numpy(), np.mean(alive), rtol=0, atol=1e-12)
    world.set_timeout(HANG)


def test_who_does_not_join_the_others_is_named() -> None:
    from decdpo.comm.mpi import world as mpi

    # Not closed in the end, for the others' call is never answered.
    world = mpi.connect(N, timeout=HANG)
    last = max(world.collect({i: world.rank for i in world.local_agents}).values())
    if not last:
        pytest.skip("one rank")
    mine = {i: 0 for i in world.local_agents}
    if world.rank == last:
        time.sleep(4)
    else:
        world.set_timeout(0.3)
        world.purpose = "the record of round 7"
        with pytest.raises(StallError) as caught:
            world.collect(mine)
        assert f"process {last} (agent" in caught.value.what
        assert "did not join the others in the record of round 7 for " in caught.value.what
        assert "comm.timeout" in caught.value.remedy


def test_waiting_is_booked_on_the_neighbour(connect: Any) -> None:
    world = connect()
    if len(world.local_agents) == N:
        pytest.skip("one rank")
    exchange = world.exchange(10, torch.float32)
    last = N - 1
    if world.is_root:
        exchange.start(0, 0, Row(0.5, (last,), (0.5,), ()), torch.zeros(10))
        exchange.collect(0)
        exchange.inbox(0, 0).settle()
        waited = exchange.counters.wait_by_neighbour
        assert set(waited) == {last} and 0 < waited[last]
        assert exchange.counters.wait_seconds == waited[last]
    elif last in world.local_agents:
        time.sleep(0.3)
        exchange.start(last, 0, Row(1.0, (), (), (0,)), torch.zeros(10))


def test_more_processes_than_agents_is_refused_on_all() -> None:
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    size = boot.start()
    if size == 1:
        pytest.skip("one rank")
    with pytest.raises(EnvironmentFault, match=f"{size} processes for {size - 1} agents"):
        mpi.connect(size - 1)


@pytest.mark.parametrize("many", [1, N + 1], ids=["in turn", "in shares"])
def test_sums_of_large_arrays(
    connect: Any, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    from decdpo.comm.mpi import collectives

    monkeypatch.setattr(collectives, "SMALL", 10)
    monkeypatch.setattr(collectives, "BLOCK_VALUES", 64)
    monkeypatch.setattr(collectives, "HANDED", 100)
    monkeypatch.setattr(collectives, "MANY", many)
    world = connect()
    values = {i: np.random.default_rng(i).standard_normal(1001) for i in range(N)}
    found = world.sum({i: values[i] for i in world.local_agents})
    expected = np.zeros(1001)
    for i in range(N):
        expected = expected + values[i]
    assert found.tobytes() == expected.tobytes()
