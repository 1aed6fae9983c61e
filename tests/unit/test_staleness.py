"""Late messages in one process: the dense oracle with delays, resuming, recording and replaying."""

import os

import numpy as np
import pytest
import torch

from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.wrappers.recall import Recalling, told_since
from decdpo.checkpoint.state import Snapshot, digest, restore
from decdpo.comm.late.delays import RecordedDelays, SeededDelays, age_file, read_ages
from decdpo.comm.late.staleness import AgeLog, StaleExchange
from decdpo.comm.local import LocalWorld
from decdpo.errors import DataError
from decdpo.params.optim import SGD
from decdpo.rng import Stream, generator
from decdpo.topology.schedule import make_schedule

N, P, SEED = 6, 5, 11
F64 = torch.float64


def problem():
    """Return A (N, P, P), positive definite, and c (N, P)."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(N, P, P))
    return root @ root.transpose(0, 2, 1) / P + 0.5 * np.eye(P), rng.normal(size=(N, P))


class Simulation:
    """DSGD with late messages, as ``decdpo.train`` runs it, on quadratics with exact gradients."""

    def __init__(self, graph, delays, max_age, *, overlap, log=None):
        self.schedule = make_schedule(graph, "auto", N)
        self.rows = {i: self.schedule.mixing(0).row(i) for i in range(N)}
        inner = Dsgd(SGD(momentum=0.5), P)
        self.algorithm = Recalling(inner, P, max_age) if max_age else inner
        self.states = {i: self.algorithm.init(torch.zeros(P, dtype=F64)) for i in range(N)}
        self.exchange = LocalWorld(N).exchange(P, F64)
        if delays is not None:
            self.exchange = StaleExchange(self.exchange, delays, max_age)
        if log is not None:
            self.exchange = AgeLog(self.exchange, log)
        self.overlap = overlap
        self.A, self.c = (torch.from_numpy(part) for part in problem())

    def start(self, t):
        for i, state in self.states.items():
            self.exchange.start(i, t, self.rows[i], self.algorithm.message(state))

    def round(self, t):
        if self.overlap:
            self.start(t)
        for i, state in self.states.items():
            self.algorithm.local_step(state, self.A[i] @ (state.x - self.c[i]), 0.05)
        if not self.overlap:
            self.start(t)
        self.exchange.collect(t)
        for i, state in self.states.items():
            self.algorithm.mix(state, self.exchange.inbox(i, t))
        return np.stack([state.x.numpy().copy() for state in self.states.values()])


def oracle(graph, ages, *, overlap, rounds):
    """Yield X after each round; ages(i, t, k) is the delay of the k-th source of i, uncut."""
    A, c = problem()
    rows = [make_schedule(graph, "auto", N).mixing(0).row(i) for i in range(N)]
    X, V, told = np.zeros((N, P)), np.zeros((N, P)), []
    for t in range(rounds):
        V = 0.5 * V + np.einsum("npq,nq->np", A, X - c)
        Y = X - 0.05 * V
        told.append(X if overlap else Y)
        X = Y.copy()
        for i, row in enumerate(rows):
            for k, (j, w) in enumerate(zip(row.sources, row.weights)):
                X[i] += w * (told[max(0, t - ages(i, t, k))][j] - told[t][i])
        yield X


def seeded(graph, max_age):
    """Return the delays that the seed stands for, drawn as they are defined."""
    schedule = make_schedule(graph, "auto", N)
    counts = [len(schedule.mixing(0).row(i).sources) for i in range(N)]

    def ages(i, t, k):
        return generator(SEED, Stream.DELAY, i, t).integers(0, max_age + 1, counts[i])[k]

    return ages


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("max_age", [1, 2, 5])
def test_seeded_delays_are_the_dense_oracle(overlap, max_age):
    run = Simulation("exponential", SeededDelays(SEED, max_age), max_age, overlap=overlap)
    synchronous = Simulation("exponential", None, 0, overlap=overlap)
    ages = seeded("exponential", max_age)
    for t, X in enumerate(oracle("exponential", ages, overlap=overlap, rounds=20)):
        np.testing.assert_allclose(run.round(t), X, rtol=0, atol=1e-10)
        without = synchronous.round(t)
    assert np.abs(X - without).max() > 1e-3
    counted = run.exchange.counters.ages
    assert len(counted) == max_age + 1 and min(counted) > 0
    assert sum(counted) == 20 * sum(len(row.sources) for row in run.rows.values())


def test_fixed_delays_are_always_the_oldest():
    run = Simulation("ring", SeededDelays(SEED, 3, fixed=True), 3, overlap=True)
    for t, X in enumerate(oracle("ring", lambda i, t, k: 3, overlap=True, rounds=12)):
        np.testing.assert_allclose(run.round(t), X, rtol=0, atol=1e-10)
    assert run.exchange.counters.ages == [12, 12, 12, 12 * 9]


@pytest.mark.parametrize("overlap", [True, False])
def test_without_delay_it_is_synchronous_to_the_bit(overlap):
    late = Simulation("ring", SeededDelays(SEED, 0), 0, overlap=overlap)
    kept = Simulation("ring", SeededDelays(SEED, 0), 2, overlap=overlap)
    plain = Simulation("ring", None, 0, overlap=overlap)
    for t in range(8):
        X = plain.round(t)
        np.testing.assert_array_equal(late.round(t), X)
        np.testing.assert_array_equal(kept.round(t), X)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("stop", [2, 7])
def test_a_resumed_run_hears_the_old_messages_again(overlap, stop):
    def new():
        return Simulation("exponential", SeededDelays(SEED, 4), 4, overlap=overlap)

    whole, again = new(), new()
    for t in range(stop):
        whole.round(t)
    for record, state in zip(Snapshot().take(whole.states), again.states.values()):
        saved = record.tensors
        restore(state, record.structure, record.scalars, lambda path, x: x.copy_(saved[path]))
        assert "x" in saved and saved["told"].shape == (4, P)
    again.exchange.recall(again.rows, {i: told_since(s) for i, s in again.states.items()})
    for t in range(stop, stop + 8):
        np.testing.assert_array_equal(whole.round(t), again.round(t))
    first, second = (Snapshot().take(run.states) for run in (whole, again))
    assert [digest(r) for r in first] == [digest(r) for r in second]


def test_the_delay_of_an_agent_depends_on_seed_and_round_alone():
    one, other = SeededDelays(1, 9), SeededDelays(1, 9)
    sources = range(8)
    assert one.ages(3, 5, sources) == other.ages(3, 5, sources)
    assert one.ages(3, 5, sources) != one.ages(3, 6, sources) != one.ages(4, 6, sources)
    assert SeededDelays(2, 9).ages(3, 5, sources) != one.ages(3, 5, sources)
    drawn = [d for t in range(500) for d in one.ages(0, t, sources)]
    assert np.abs(np.bincount(drawn, minlength=10) - 400).max() < 4.5 * 20


def test_what_was_recorded_can_be_replayed_to_the_bit(tmp_path):
    run = Simulation("ring", SeededDelays(SEED, 3), 3, overlap=True, log=tmp_path)
    first = [run.round(t) for t in range(9)]
    run.exchange.close()
    again = Simulation("ring", RecordedDelays(tmp_path, range(N), 3), 3, overlap=True)
    for t in range(9):
        np.testing.assert_array_equal(again.round(t), first[t])
    assert sorted(read_ages(age_file(tmp_path, 2))) == list(range(9))
    with pytest.raises(DataError, match="no ages of 2 messages in round 9"):
        again.round(9)
    with pytest.raises(DataError, match="max_age = 1"):
        short = Simulation("ring", RecordedDelays(tmp_path, range(N), 1), 1, overlap=True)
        for t in range(9):
            short.round(t)
    with pytest.raises(DataError, match="no ages of 5 messages"):
        Simulation("complete", RecordedDelays(tmp_path, range(N), 3), 3, overlap=True).round(0)


@pytest.mark.parametrize(
    "text",
    [
        None, "{}", "[1]", '{"round": 1, "ages": ["x"]}', "nonsense", "null",
        '{"round": 1e400, "ages": []}', '{"round": "1", "ages": [0]}', '{"round": 0, "ages": [0]}',
        '{"round": 3, "ages": [-1]}', '{"round": 3, "ages": [3]}', '{"round": 3, "ages": [1.5]}',
        '{"round": 3, "ages": 7}', '{"round": 3, "ages": "12"}', '{"round": 3, "ages": {"1": 2}}',
        '{"round": 99999999999999999999, "ages": []}', "[" * 100_000, "9" * 5000,
    ],
)  # fmt: skip
def test_a_broken_record_is_named(tmp_path, text):
    if text is not None:
        age_file(tmp_path, 0).write_text(text)
    with pytest.raises(DataError, match="agent_000000.jsonl") as caught:
        RecordedDelays(tmp_path, [0], 3)
    assert caught.value.remedy


def test_a_pipe_in_place_of_a_record_is_named(tmp_path):
    os.mkfifo(age_file(tmp_path, 0))
    with pytest.raises(DataError, match="named pipe"):
        read_ages(age_file(tmp_path, 0))


def test_late_messages_do_not_preserve_the_mean_and_dsgd_slows():
    """The documented price: mixing alone moves the mean, and consensus takes longer."""
    gap = {}
    for max_age in (0, 4):
        delays = SeededDelays(SEED, max_age)
        run = Simulation("ring", delays, max_age, overlap=False)
        start = np.random.default_rng(3).normal(size=(N, P))
        for i, state in run.states.items():
            state.x.copy_(torch.from_numpy(start[i]))
        run.A.zero_()
        for t in range(12):
            X = run.round(t)
        drift = np.abs(X.mean(axis=0) - start.mean(axis=0)).max()
        assert (drift < 1e-14) == (max_age == 0)
        gap[max_age] = np.ptp(X, axis=0).max()
    assert gap[0] < 0.5 * gap[4]
