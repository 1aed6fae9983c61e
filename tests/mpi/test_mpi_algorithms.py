"""Every algorithm gives the bits of one process on any number of ranks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from limits import HANG

from decdpo.algorithms.gossip.choco import Choco
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.exact_diffusion import ExactDiffusion
from decdpo.algorithms.gossip.gossip_outer_momentum import GossipOuterMomentum
from decdpo.algorithms.gossip.gradient_tracking import GradientTracking
from decdpo.algorithms.gossip.push_sum import PushSum
from decdpo.algorithms.gossip.quasi_global_momentum import QuasiGlobalMomentum
from decdpo.algorithms.robust.clipped_gossip import ClippedGossip
from decdpo.algorithms.robust.trimmed_mean import TrimmedMean
from decdpo.algorithms.server.centralized import Centralized
from decdpo.algorithms.server.fedavg import FedAvg
from decdpo.algorithms.server.outer_momentum import OuterMomentum
from decdpo.algorithms.wrappers.fragments import Fragments
from decdpo.algorithms.wrappers.running import Running
from decdpo.codecs.quantize import Quantize
from decdpo.codecs.randomk import RandomK
from decdpo.codecs.topk import TopK
from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.params.optim import SGD, AdamW
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import Averaging, make_schedule

pytestmark = pytest.mark.mpi
N, P, ROUNDS = 8, 300, 9
CASES = {
    "dsgd": (Dsgd(SGD(momentum=0.9), P), "ring"),
    "centralized": (Centralized(SGD()), Averaging(range(N))),
    "fedavg": (FedAvg(SGD(momentum=0.9), P), Participation(N, 3, seed=2)),
    "fedavg by pairs": (FedAvg(SGD(), P), Participation(N, 5, seed=2, weights=range(1, N + 1))),
    "fedavg with momentum": (
        OuterMomentum(SGD(), P, SGD(momentum=0.9)),
        Participation(N, 1, seed=3),
    ),
    "outer momentum": (
        OuterMomentum(AdamW(), P, SGD(momentum=0.9, nesterov=True), 0.7),
        Averaging(range(N)),
    ),
    "outer momentum by gossip": (
        GossipOuterMomentum(AdamW(), P, SGD(momentum=0.9, nesterov=True), 0.7),
        "random_matching",
    ),
    "dsgd in fragments": (Fragments(Dsgd(SGD(momentum=0.9), P), P, 7), "ring"),
    "outer momentum in fragments": (
        Fragments(OuterMomentum(AdamW(), P, SGD(momentum=0.9), 0.7), P, 7),
        Averaging(range(N)),
    ),
    "gradient tracking in fragments": (
        Fragments(GradientTracking(SGD(momentum=0.9), P), P, 7), "one_peer_exponential",
    ),
    "exact diffusion in fragments": (Fragments(ExactDiffusion(SGD(), P), P, 7), "random_matching"),
    "quasi-global momentum in fragments": (
        Fragments(QuasiGlobalMomentum(SGD(), P), P, 7), "exponential",
    ),
    "push-sum in fragments": (Fragments(PushSum(AdamW(), P), P, 7), "star"),
    "choco in fragments": (
        Fragments(
            Choco(SGD(), P, Quantize(43, torch.float32, 4, 3), 0.6,
                  codec_below=Quantize(42, torch.float32, 4, 3)),
            P, 7,
        ),
        "ring",
    ),
    "clipped gossip in fragments": (Fragments(ClippedGossip(SGD(), P, 1), P, 7), "exponential"),
    "trimmed mean in fragments": (Fragments(TrimmedMean(SGD(), P, 2), P, 7), "complete"),
    "fragments with a statistic": (Running(Fragments(Dsgd(SGD(), P), P, 7)), "random_matching"),
    "gradient tracking": (GradientTracking(SGD(momentum=0.9), P), "one_peer_exponential"),
    "gradient tracking, pairs": (GradientTracking(AdamW(), P), "random_matching"),
    "exact diffusion": (ExactDiffusion(SGD(), P), "ring"),
    "exact diffusion, pairs": (ExactDiffusion(SGD(), P), "random_matching"),
    "quasi-global momentum": (QuasiGlobalMomentum(SGD(), P), "exponential"),
    "push-sum": (PushSum(SGD(momentum=0.9), P), "star"),
    "choco, top-k": (Choco(SGD(momentum=0.9), P, TopK(P, torch.float32, 30), 0.2), "ring"),
    "choco, random-k": (Choco(SGD(), P, RandomK(P, torch.float32, 41, 3), 0.1), "exponential"),
    "choco, int4": (Choco(AdamW(), P, Quantize(P, torch.float32, 4, 3), 0.6), "complete"),
    "clipped gossip": (ClippedGossip(SGD(momentum=0.9), P, 1), "exponential"),
    "trimmed mean": (TrimmedMean(AdamW(), P, 2), "complete"),
    "push-sum, one peer": (PushSum(SGD(), P), "one_peer_exponential"),
    "dsgd with a statistic": (Running(Dsgd(SGD(), P)), "ring"),
    "choco with a statistic": (Running(Choco(SGD(), P, TopK(P, torch.float32, 30), 0.2)), "ring"),
    "fedavg with a statistic": (Running(FedAvg(SGD(), P)), Participation(N, 3, seed=2)),
}
ADAPT_FIRST = (
    FedAvg, OuterMomentum, Centralized, ExactDiffusion, ClippedGossip, TrimmedMean
)  # fmt: skip
"""Algorithms without overlap."""


def _kind(algorithm: Any) -> Any:
    """Return the algorithm, without what shares a statistic beside it, or sends parts of it."""
    while hasattr(algorithm, "inner"):
        algorithm = algorithm.inner
    return algorithm


@pytest.fixture
def world() -> Iterator[Any]:
    """Return N agents on the ranks of this job."""
    from decdpo.comm.mpi import world as mpi

    made = mpi.connect(N, timeout=HANG)
    yield made
    made.close()


def gradient(agent: int, step: int, x: torch.Tensor) -> torch.Tensor:
    """Return a noisy gradient of 1/2 a (x - c)^2, element by element, of its agent's a and c."""
    rng = np.random.default_rng([agent, 7])
    slope, centre = (torch.from_numpy(rng.random(P, dtype=np.float32)) for _ in range(2))
    noise = np.random.default_rng([agent, step]).random(P, dtype=np.float32)
    return (slope + 0.5) * (x - centre) + torch.from_numpy(noise) - 0.5


def train(world: Any, name: str, overlap: bool) -> tuple[dict[int, torch.Tensor], list[int]]:
    """Return the local agents' parameters after all rounds, and the messages and bytes sent."""
    algorithm, schedule = CASES[name]
    kind = _kind(algorithm)
    if isinstance(schedule, str):
        push = isinstance(kind, PushSum)
        schedule = make_schedule(schedule, "auto", N, seed=5, push_sum=push)

    def new() -> Any:
        dtype = torch.uint8 if isinstance(kind, Choco) else torch.float32
        return world.exchange(algorithm.message_size(P), dtype, digest=name)

    server = kind.needs.meets == "server"
    exchange = ServerExchange(new(), new(), all_hear=N) if server else new()
    states = {i: algorithm.init(torch.zeros(P)) for i in world.local_agents}

    def start(t: int) -> None:
        for i, state in states.items():
            row = schedule.mixing(t).row(i)
            exchange.start(i, t, row, algorithm.message(state) if row.active else None)

    for t in range(ROUNDS):
        if overlap:
            start(t)
        for i, state in states.items():
            for step in range(2 * t, 2 * t + 2):
                if schedule.mixing(t).row(i).active:
                    algorithm.local_step(state, gradient(i, step, state.x), 0.05)
                    if isinstance(algorithm, Running):
                        # What is shared acts on the model, so that its bits are compared, too.
                        state.running += float(state.x[0])
                        state.x[1] += float(state.running) / 100
        if not overlap:
            start(t)
        exchange.collect(t)
        for i, state in states.items():
            algorithm.mix(state, exchange.inbox(i, t))
    sent = [exchange.counters.messages_sent, exchange.counters.bytes_sent]
    exchange.close()
    return {i: state.x for i, state in states.items()}, sent


@pytest.mark.parametrize(
    "name, overlap",
    [(name, False) for name in CASES]
    + [(name, True) for name, (a, _) in CASES.items() if not isinstance(_kind(a), ADAPT_FIRST)],
)
def test_the_bits_do_not_depend_on_the_ranks(world: Any, name: str, overlap: bool) -> None:
    found, _ = train(world, name, overlap)
    alone, _ = train(LocalWorld(N), name, overlap)
    assert sorted(found) == list(world.local_agents)
    for i, x in found.items():
        assert torch.equal(x.view(torch.int32), alone[i].view(torch.int32))
        assert 0.01 < float(x.abs().max()) < 10


def test_only_participants_send_and_one_message_a_process_comes_back(world: Any) -> None:
    _, sent = train(world, "fedavg", overlap=False)
    first = world.local_agents[0]
    counted = {i: sent if i == first else [0, 0] for i in world.local_agents}
    messages = int(world.sum({i: np.array(pair) for i, pair in counted.items()})[0])
    homes = world.collect({i: first for i in world.local_agents})
    schedule = CASES["fedavg"][1]
    up = sum(homes[i] != homes[0] for t in range(ROUNDS) for i in schedule.mixing(t).row(0).sources)
    assert messages == up + ROUNDS * (len(set(homes.values())) - 1)
