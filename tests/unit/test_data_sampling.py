"""The sampler: every epoch visits every pair once, and a step's rows depend on nothing but it."""

import numpy as np
import pytest

from decdpo.data.sampling import EpochSampler
from decdpo.errors import DataError


@pytest.mark.parametrize("num_pairs, size", [(10, 3), (7, 7), (5, 13), (1, 4), (64, 16)])
def test_every_epoch_visits_every_pair_once(num_pairs, size):
    sampler = EpochSampler(seed=3, agent=2, num_pairs=num_pairs)
    epochs = 4
    steps = -(-epochs * num_pairs // size)
    sequence = np.concatenate([sampler.rows(step, size) for step in range(steps)])
    for epoch in range(epochs):
        part = sequence[epoch * num_pairs : (epoch + 1) * num_pairs]
        assert sorted(part) == list(range(num_pairs))


def test_rows_do_not_depend_on_what_was_asked_before():
    steps = np.random.default_rng(0).integers(0, 50, 200)
    jumping = EpochSampler(seed=1, agent=0, num_pairs=11)
    for step in steps:
        fresh = EpochSampler(seed=1, agent=0, num_pairs=11)
        np.testing.assert_array_equal(jumping.rows(int(step), 4), fresh.rows(int(step), 4))


def test_rows_are_int64_and_may_be_changed_by_the_caller():
    sampler = EpochSampler(seed=0, agent=0, num_pairs=20)
    rows = sampler.rows(0, 5)
    before = rows.copy()
    assert rows.dtype == np.int64 and rows.shape == (5,)
    rows[:] = -1
    np.testing.assert_array_equal(sampler.rows(0, 5), before)


def test_agents_seeds_and_epochs_draw_different_orders():
    orders = [
        EpochSampler(seed, agent, 50).rows(step, 50).tolist()
        for seed, agent, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_an_agent_without_pairs_is_refused():
    with pytest.raises(DataError, match="agent 4 has 0 training pairs"):
        EpochSampler(seed=0, agent=4, num_pairs=0)


@pytest.mark.parametrize("step, size", [(-1, 4), (0, 0)])
def test_impossible_batches_are_refused(step, size):
    with pytest.raises(ValueError):
        EpochSampler(0, 0, 5).rows(step, size)
