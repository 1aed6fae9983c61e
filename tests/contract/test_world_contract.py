"""What every world must do alike: the same bits, the same errors, whatever carries the messages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from limits import HANG
from torch import Tensor

from decdpo.checkpoint.inspect import digests
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.local import LocalWorld
from decdpo.comm.mixing import Received
from decdpo.comm.mpi.launch import launched_by_mpi
from decdpo.comm.server import ServerExchange
from decdpo.errors import ConfigError, DataError, EnvironmentFault, StallError
from decdpo.messages import BLOCK, Message
from decdpo.topology.row import Row
from decdpo.topology.schedule import make_schedule

N = 8
KINDS: dict[str, Any] = {
    "local": None,
    "p2p": {"transport": "p2p"},
    "p2p, no thread": {"transport": "p2p", "progress": "none"},
    "window": {"transport": "window"},
    "auto, small chunks": {"transport": "auto", "chunk_bytes": 1},
    "p2p, small chunks": {"transport": "p2p", "chunk_bytes": 1},
    "two ranks a node": {"transport": "auto", "ranks_per_node": 2, "chunk_bytes": 1},
    "interleaved": {"transport": "p2p", "home": lambda agent, ranks: agent % ranks},
    "interleaved, window": {"home": lambda agent, ranks: ranks - 1 - agent % ranks},
}
SHOWN = {
    "p2p": (1, 2, 3),
    "p2p, no thread": (2,),
    "window": (1, 2, 3),
    "auto, small chunks": (2, 4),
    "p2p, small chunks": (2, 4),
    "two ranks a node": (3, 4),
    "interleaved": (2, 3),
    "interleaved, window": (2, 4),
}
"""The numbers of ranks, up to four, on which a kind is tested: each number has kinds of all sorts.
"""
Schedule = Callable[[int], np.ndarray]


@pytest.fixture(params=list(KINDS))
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return N agents in a world of each kind; all but "local" need mpirun."""
    options = KINDS[request.param]
    copies = launched_by_mpi()
    if options is None:
        if copies is not None and copies > 1:
            pytest.skip("one process has shown it")
        yield LocalWorld(N)
        return
    if copies is None:
        pytest.skip("not started by mpirun")
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    options, ranks = dict(options), boot.start()
    if ranks <= 4 and ranks not in SHOWN[request.param]:
        pytest.skip(f"{request.param}: shown on {SHOWN[request.param]} ranks")
    if "home" in options:
        home = options.pop("home")
        options["home"] = {agent: home(agent, ranks) for agent in range(N)}
    made = mpi.connect(N, timeout=HANG, **options)
    yield made
    made.close()


def ring(round: int) -> np.ndarray:
    w = np.zeros((N, N))
    for i in range(N):
        w[i, (i - 1) % N] = w[i, (i + 1) % N] = 0.3
        w[i, i] = 0.4
    return w


def one_peer(round: int) -> np.ndarray:
    """Directed: i hears i + 2^k, k = round mod 3, and tells i - 2^k."""
    w = 0.5 * np.eye(N)
    for i in range(N):
        w[i, (i + 2 ** (round % 3)) % N] = 0.5
    return w


def matching(round: int) -> np.ndarray:
    """Random pairs, another pairing each round; the last two sit out now and then."""
    order = np.random.default_rng(round).permutation(N)
    w = np.eye(N)
    for a, b in zip(order[::2], order[1::2]):
        if round % 3 or max(a, b) < N - 2:
            w[a, a] = w[b, b] = 0.25
            w[a, b] = w[b, a] = 0.75
    return w


def lopsided(round: int) -> np.ndarray:
    """Agents 0 and 5 are heard by all, nobody else is heard by anybody."""
    w = np.zeros((N, N))
    for i in range(N):
        w[i, 0], w[i, 5] = 0.125, 0.25
        w[i, i] += 1 - 0.375
    return w


def complete(round: int) -> np.ndarray:
    return np.full((N, N), 1 / N)


def row_of(w: np.ndarray, i: int) -> Row:
    sources = tuple(int(j) for j in np.flatnonzero(w[i]) if j != i)
    targets = tuple(int(k) for k in np.flatnonzero(w[:, i]) if k != i)
    return Row(float(w[i, i]), sources, tuple(float(w[i, j]) for j in sources), targets)


def initial(agent: int, size: int, dtype: torch.dtype) -> Tensor:
    made = torch.Generator().manual_seed(agent)
    return torch.randn(size, generator=made, dtype=torch.float64).to(dtype)


def mix(
    world: Any, schedule: Schedule, xs: dict[int, Tensor], rounds: int, *, whole: bool = False
) -> None:
    """Run ``rounds`` of x <- W x in place, and close the exchange."""
    size, dtype = next(iter(xs.values())).numel(), next(iter(xs.values())).dtype
    exchange = world.exchange(size, dtype, digest="test", whole=whole)
    for t in range(3, 3 + rounds):
        w = schedule(t)
        for i in world.local_agents:
            exchange.start(i, t, row_of(w, i), xs[i])
        world.commit(t, exchange.collect(t))
        for i in world.local_agents:
            exchange.inbox(i, t).displace(xs[i])
    exchange.close()


@pytest.mark.parametrize("schedule", [ring, one_peer, matching, lopsided, complete])
def test_rounds_equal_the_matrix_power(world: Any, schedule: Schedule) -> None:
    xs = {i: initial(i, 1000, torch.float64) for i in world.local_agents}
    mix(world, schedule, xs, 7)
    dense = torch.stack([initial(i, 1000, torch.float64) for i in range(N)]).numpy()
    for t in range(3, 10):
        dense = schedule(t) @ dense
    for i in world.local_agents:
        np.testing.assert_allclose(xs[i].numpy(), dense[i], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "size, dtype",
    [
        (0, torch.float32),
        (1, torch.bfloat16),
        (3 * BLOCK + 5, torch.float32),
        (2 * BLOCK + 3, torch.float64),
        (BLOCK + 5, torch.bfloat16),
        (BLOCK + 2, torch.float16),
    ],
)
def test_the_bits_do_not_depend_on_the_world(world: Any, size: int, dtype: torch.dtype) -> None:
    xs = {i: initial(i, size, dtype) for i in world.local_agents}
    mix(world, ring, xs, 3)
    alone = {i: initial(i, size, dtype) for i in range(N)}
    mix(LocalWorld(N), ring, alone, 3)
    for i in world.local_agents:
        assert torch.equal(xs[i].view(torch.uint8), alone[i].view(torch.uint8))


@pytest.mark.parametrize("schedule", [ring, one_peer, matching, lopsided])
@pytest.mark.parametrize("size", [7, 2 * BLOCK + 1])
def test_rounds_collected_as_a_whole_have_the_same_bits(
    world: Any, schedule: Schedule, size: int
) -> None:
    xs = {i: initial(i, size, torch.float32) for i in world.local_agents}
    mix(world, schedule, xs, 4, whole=True)
    alone = {i: initial(i, size, torch.float32) for i in range(N)}
    mix(LocalWorld(N), schedule, alone, 4)
    assert all(torch.equal(x, alone[i]) for i, x in xs.items())


def test_a_collected_inbox_waits_for_nothing(world: Any) -> None:
    exchange = world.exchange(2 * BLOCK, torch.float32, whole=True)
    for i in world.local_agents:
        exchange.start(i, 0, row_of(complete(0), i), torch.full((2 * BLOCK,), float(i)))
    assert exchange.collect(0) and exchange.missing(0) == ()
    waited = exchange.counters.wait_seconds
    for i in world.local_agents:
        # All is here, before anybody has asked for a part.
        inbox = exchange.inbox(i, 0)
        assert [m.body[-1].item() for m in inbox.messages] == [j for j in range(N) if j != i]
        inbox.settle()
    assert exchange.counters.wait_seconds == waited
    exchange.close()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [5, BLOCK + 1])
def test_a_round_that_is_rewired_mixes_by_the_new_rows(
    world: Any, size: int, whole: bool
) -> None:
    """The graph of every other round becomes another one after its messages have left."""
    exchange = world.exchange(size, torch.float64, whole=whole)
    xs = {i: initial(i, size, torch.float64) for i in world.local_agents}
    dense = torch.stack([initial(i, size, torch.float64) for i in range(N)]).numpy()
    for t in range(6):
        before, after = ring(t), (complete(t), matching(t), ring(t))[t % 3]
        sent = exchange.counters.messages_sent
        for i, x in xs.items():
            exchange.start(i, t, row_of(before, i), x)
        exchange.collect(t)
        exchange.rewire(world.members, {i: row_of(after, i) for i in xs})
        assert exchange.collect(t)
        for i, x in xs.items():
            exchange.inbox(i, t).displace(x)
        dense = after @ dense
        rank_of = world.members.rank_of
        expected = 0
        for i in xs:
            targets = {*row_of(before, i).targets, *row_of(after, i).targets}
            expected += len({rank_of(j) for j in targets} - {rank_of(i)})
        assert exchange.counters.messages_sent - sent == expected
    exchange.close()
    for i, x in xs.items():
        np.testing.assert_allclose(x.numpy(), dense[i], rtol=0, atol=1e-13)


def test_members_know_where_every_agent_is(world: Any) -> None:
    members = world.members
    assert (members.epoch, members.agents) == (0, tuple(range(N)))
    mine = members.rank_of(world.local_agents[0])
    assert members.agents_of(mine) == world.local_agents == tuple(sorted(world.local_agents))
    homes = world.collect({i: mine for i in world.local_agents})
    assert homes == {i: members.rank_of(i) for i in range(N)}


def test_a_complete_round_is_committed_without_communication(world: Any) -> None:
    assert world.commit(3, True) is world.members
    with pytest.raises(StallError, match="not all messages of round 3"):
        world.commit(3, False)


@dataclass
class State:
    x: Tensor
    rounds: int


def states_of(world: Any, made: bool) -> dict[int, State]:
    """Return states of the local agents, ``made`` or blank."""
    blank = torch.zeros(70)
    return {
        i: State(initial(i, 70, torch.float32), i) if made else State(blank.clone(), -1)
        for i in world.local_agents
    }


def test_a_checkpoint_of_any_placement_is_read_in_any_other(
    world: Any, tmp_path: Path, agree: Any
) -> None:
    shared = not isinstance(world, LocalWorld)
    folder = Path(agree.texts(str(tmp_path))[0]) if shared else tmp_path

    def store(world: Any, name: str) -> CheckpointStore:
        return CheckpointStore(folder / name, world=world, identity={})

    there = store(world, "there")
    there.save(4, states_of(world, True))
    there.flush()
    if world.is_root:
        alone = store(LocalWorld(N), "alone")
        alone.save(4, states_of(LocalWorld(N), True))
        alone.flush()
        digests_of = [digests(folder / name / "round_000004") for name in ("there", "alone")]
        assert digests_of[0] == digests_of[1]
    world.require(None)
    for reader, name in ((world, "alone"), (LocalWorld(N), "there")):
        if reader is world or world.is_root:
            blank = states_of(reader, False)
            assert store(reader, name).load(blank) == 4
            for i, state in states_of(reader, True).items():
                assert torch.equal(blank[i].x, state.x) and blank[i].rounds == i
    world.require(None)


def test_what_was_sent_is_a_snapshot(world: Any) -> None:
    exchange = world.exchange(5, torch.float32)
    xs = {i: torch.full((5,), float(i)) for i in world.local_agents}
    for t in range(2):
        for i, x in xs.items():
            exchange.start(i, t, row_of(ring(t), i), x)
            x += 100.0
        exchange.collect(t)
        for i in xs:
            inbox = exchange.inbox(i, t)
            inbox.settle()
            assert inbox.sent.tolist() == [i + 100.0 * t] * 5
            for message in inbox.messages:
                assert message.body.tolist() == [message.source + 100.0 * t] * 5
                assert (message.weight, message.age) == (0.3, 0)
            assert [m.source for m in inbox.messages] == sorted({(i - 1) % N, (i + 1) % N})
    exchange.close()


def test_an_inbox_that_nobody_reads_harms_no_later_round(world: Any) -> None:
    exchange = world.exchange(3 * BLOCK, torch.float32)
    for t in range(6):
        for i in world.local_agents:
            exchange.start(i, t, row_of(ring(t), i), torch.full((3 * BLOCK,), 10.0 * t + i))
        exchange.collect(t)
        for i in world.local_agents:
            inbox = exchange.inbox(i, t)
            if t % 2 == i % 2:
                inbox.settle()
                for message in inbox.messages:
                    assert set(message.body[:: BLOCK // 2].tolist()) == {10.0 * t + message.source}
    exchange.close()


def test_an_agent_may_only_listen(world: Any) -> None:
    exchange = world.exchange(4, torch.float32)
    tells = Row(1.0, (), (), tuple(range(1, N)))
    hears = Row(0.0, (0,), (1.0,), ())
    for t in range(4):
        for i in world.local_agents:
            message = torch.full((4,), float(t)) if i == 0 else None
            exchange.start(i, t, tells if i == 0 else hears, message)
        exchange.collect(t)
        for i in world.local_agents:
            inbox = exchange.inbox(i, t)
            inbox.settle()
            assert [message.body.tolist() for message in inbox.messages] == [[t] * 4] * (i > 0)
            assert inbox.sent.numel() == (4 if i == 0 else 0)
    exchange.close()


def test_calls_that_cannot_be_right(world: Any) -> None:
    exchange = world.exchange(4, torch.float32)
    mine = world.local_agents[0]
    silent = Row(1.0, (), (), ())
    with pytest.raises(ValueError, match="shape"):
        exchange.start(mine, 0, silent, torch.zeros(5))
    with pytest.raises(ValueError, match="float64"):
        exchange.start(mine, 0, silent, torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="does not live here"):
        exchange.start(N, 0, silent, torch.zeros(4))
    with pytest.raises(ValueError, match="no message"):
        exchange.start(mine, 0, Row(1.0, (), (), ((mine + 1) % N,)), None)
    exchange.start(mine, 5, silent, torch.zeros(4))
    with pytest.raises(ValueError, match="round 4 starts after round 5"):
        exchange.start(mine, 4, silent, torch.zeros(4))
    exchange.close()


def test_a_local_neighbour_that_never_spoke_is_named(world: Any) -> None:
    first, *others = world.local_agents
    if not others:
        pytest.skip("one agent on this rank")
    exchange = world.exchange(4, torch.float32)
    exchange.start(first, 2, Row(0.5, (others[0],), (0.5,), ()), torch.zeros(4))
    with pytest.raises(StallError, match=f"agent {first} listens to agent {others[0]}.*round 2"):
        exchange.inbox(first, 2)
    exchange.close()


@pytest.mark.parametrize("shape", [(), (3,), (5, 2), (70001,)])
def test_sums_have_the_same_bits_everywhere(world: Any, shape: tuple[int, ...]) -> None:
    def value(agent: int) -> np.ndarray:
        drawn = np.random.default_rng(agent).standard_normal(shape) * 10.0 ** (agent % 5)
        return np.asarray(drawn, dtype=np.float32)

    found = world.sum({i: value(i) for i in world.local_agents})
    expected = np.zeros(shape)
    for i in range(N):
        expected = expected + value(i).astype(np.float64)
    assert found.dtype == np.float64 and found.shape == shape
    assert found.tobytes() == np.asarray(expected).tobytes()


def test_collect_returns_every_agents_value(world: Any) -> None:
    found = world.collect({i: {"id": i, "text": "ü" * i} for i in world.local_agents})
    assert found == {i: {"id": i, "text": "ü" * i} for i in range(N)}
    assert list(found) == list(range(N))


def test_require_raises_everywhere_or_nowhere(world: Any) -> None:
    world.require(None)
    fault = DataError("shard 7 is short", "copy it again") if 7 in world.local_agents else None
    with pytest.raises(DataError, match="shard 7 is short") as caught:
        world.require(fault)
    assert caught.value.remedy == "copy it again"
    foreign = OSError("disk full") if 0 in world.local_agents else None
    with pytest.raises(EnvironmentFault, match="OSError: disk full"):
        world.require(foreign)


def test_require_same_names_the_odd_one(world: Any) -> None:
    world.require_same("the seed", "1")
    if len(world.local_agents) == N:
        world.require_same("the seed", "anything")
        return
    odd = len(set(range(N))) - 1 in world.local_agents
    with pytest.raises(ConfigError, match="the seed differs: process"):
        world.require_same("the seed", "2" if odd else "1")


def test_stop_comes_at_the_end_of_a_round_and_only_when_asked(world: Any) -> None:
    exchange = world.exchange(100, torch.float32)
    xs = {i: torch.zeros(100) for i in world.local_agents}
    answers: list[bool] = []
    while not any(answers) and len(answers) < 500:
        t = len(answers)
        for i, x in xs.items():
            exchange.start(i, t, row_of(ring(t), i), x)
        exchange.collect(t)
        for i, x in xs.items():
            exchange.inbox(i, t).displace(x)
        if t == 20 and N - 1 in xs:
            world.request_stop()
        answers.append(world.stop_due(t))
    ends = set(world.collect({i: len(answers) - 1 for i in world.local_agents}).values())
    exchange.close()
    assert answers[-1] and len(ends) == 1
    # Nobody waits for its neighbours longer than a round and the ring has diameter 4.
    assert 20 <= ends.pop() <= 20 + 2 * N


def test_a_side_channel_hears_all_processes(world: Any) -> None:
    channel = world.side_channel()
    assert channel is not None
    mine = f"agents {world.local_agents}"
    heard = channel.outcomes(mine)
    assert mine in heard and len(set(heard)) == len(heard)


@pytest.mark.parametrize("all_hear", [None, N])
def test_the_server_returns_the_weighted_mean(world: Any, all_hear: int | None) -> None:
    size = BLOCK + 3
    up, down = (world.exchange(size, torch.float32) for _ in range(2))
    exchange = ServerExchange(up, down, all_hear=all_hear)
    for t in (0, 2, 4):
        chosen = sorted(np.random.default_rng(t).choice(N, size=3 + t, replace=False).tolist())
        weights = np.arange(1.0, len(chosen) + 1) / sum(range(1, len(chosen) + 1))
        row = Row(0.0, tuple(chosen), tuple(weights.tolist()), ())
        for i in world.local_agents:
            exchange.start(i, t, row, initial(i + 100 * t, size, torch.float32))
        expected = sum(
            w * initial(j + 100 * t, size, torch.float64).numpy() for j, w in zip(chosen, weights)
        )
        exchange.collect(t)
        for i in world.local_agents:
            inbox = exchange.inbox(i, t)
            inbox.settle()
            assert torch.equal(inbox.sent, initial(i + 100 * t, size, torch.float32))
            if i not in chosen and all_hear is None:
                assert inbox.messages == ()
                continue
            (message,) = inbox.messages
            assert (message.source, message.weight) == (0, 1.0)
            np.testing.assert_allclose(message.body.numpy(), expected, rtol=0, atol=1e-6)
    exchange.close()


@pytest.mark.parametrize("whole", [True, False])
def test_a_server_averages_those_that_are_left(world: Any, whole: bool) -> None:
    """Agents 1, 3, 4 and 7 send their vectors; then 4 is said to be lost, before any mean."""
    up, down = (world.exchange(3, torch.float64, whole=whole) for _ in range(2))
    exchange = ServerExchange(up, down, all_hear=N)
    before = Row(0.0, (1, 3, 4, 7), (0.25,) * 4, ())
    after = Row(0.0, (1, 3, 7), (1 / 3,) * 3, ())
    for t in range(3):
        for i in world.local_agents:
            exchange.start(i, t, before, torch.full((3,), i + t, dtype=torch.float64))
        exchange.rewire(world.members, {i: after for i in world.local_agents})
        assert exchange.collect(t) and exchange.collect(t)
        for i in world.local_agents:
            inbox = exchange.inbox(i, t)
            inbox.settle()
            (message,) = inbox.messages
            np.testing.assert_allclose(message.body.numpy(), 11 / 3 + t)
    exchange.close()


def test_spans_name_agent_and_round(world: Any) -> None:
    exchange = world.exchange(10, torch.float32)
    spans: list[tuple[str, float, float, dict[str, int]]] = []
    exchange.trace = lambda name, begin, end, spot: spans.append((name, begin, end, dict(spot)))
    xs = {i: torch.zeros(10) for i in world.local_agents}
    for i, x in xs.items():
        exchange.start(i, 4, row_of(ring(4), i), x)
    exchange.collect(4)
    for i, x in xs.items():
        exchange.inbox(i, 4).displace(x)
    for kind in ("post", "mix"):
        found = [spot for name, _, _, spot in spans if name == kind]
        assert found == [{"agent": i, "round": 4} for i in world.local_agents]
    for name, begin, end, spot in spans:
        assert begin <= end
        assert name != "wait" or spot["neighbour"] not in world.local_agents
    exchange.close()


@pytest.mark.parametrize("graph", ["complete", "ring", "random_matching"])
def test_an_average_has_the_agents_own_term_in_its_place(world: Any, graph: str) -> None:
    """The bits are those of the sum in ascending id, for every agent on its own rank."""
    schedule = make_schedule(graph, "auto", N, seed=4)
    exchange = world.exchange(41, torch.float32)
    for t in range(3):
        sent = {i: initial(i + t * N, 41, torch.float32) for i in range(N)}
        rows = {i: schedule.mixing(t).row(i) for i in range(N)}
        for i in world.local_agents:
            exchange.start(i, t, rows[i], sent[i])
        exchange.collect(t)
        for i in world.local_agents:
            terms = sorted([(i, rows[i].own), *zip(rows[i].sources, rows[i].weights)])
            expected = torch.zeros(41)
            for source, weight in terms:
                expected.add_(sent[source], alpha=weight)
            out = torch.full((41,), float("nan"))
            exchange.inbox(i, t).average(out)
            assert torch.equal(out, expected)
    exchange.close()


def test_displacement_takes_parts_in_any_cut() -> None:
    size = 2 * BLOCK + 77
    sent, a, b = (initial(i, size, torch.bfloat16) for i in range(3))
    messages = (Message(1, 0.25, 0, a), Message(2, 1 / 3, 0, b))
    whole, cut = initial(9, size, torch.bfloat16), initial(9, size, torch.bfloat16)
    Received(sent, messages).displace(whole)
    parts = (slice(0, BLOCK), slice(BLOCK, 2 * BLOCK), slice(2 * BLOCK, size))
    Received(sent, messages, iter(parts)).displace(cut)
    assert torch.equal(whole, cut)
