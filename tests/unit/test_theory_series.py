"""Means over the rounds of a run from the rounds that were recorded."""

import numpy as np
import pytest

from decdpo.errors import DataError
from decdpo.theory.series import mean_over_rounds


def test_all_rounds_recorded_give_the_mean_without_the_last():
    values = np.random.default_rng(0).standard_normal(12) ** 2
    assert mean_over_rounds(range(12), values) == pytest.approx(values[:-1].mean())


@pytest.mark.parametrize("every", [1, 2, 5, 7, 20])
def test_a_linear_decay_is_exact_however_seldom_it_is_recorded(every):
    full = 3.0 - 0.1 * np.arange(21)
    rounds = sorted({0, *range(every, 21, every), 20})
    assert mean_over_rounds(rounds, full[rounds]) == pytest.approx(full[:-1].mean())


def test_a_fast_decay_from_few_records_is_near_its_mean():
    full = np.exp(-np.arange(81) / 10)
    rounds = list(range(0, 81, 4))
    found = mean_over_rounds(rounds, full[rounds])
    # The plain mean of the records, without the start, is off by 23 %.
    assert found == pytest.approx(full[:-1].mean(), rel=0.02)
    assert full[rounds[1:]].mean() == pytest.approx(0.77 * full[:-1].mean(), rel=0.02)


def test_one_record_is_its_own_mean_and_disorder_is_refused():
    assert mean_over_rounds([5], [0.25]) == 0.25
    for rounds, values in (([], []), ([0, 0], [1, 1]), ([2, 1], [1, 1]), ([0, 1], [1])):
        with pytest.raises(DataError):
            mean_over_rounds(rounds, values)
