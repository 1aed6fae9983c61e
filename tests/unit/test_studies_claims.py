"""The tidy table, and how claims are judged from it."""

import csv

import numpy as np
import pytest
from scipy import stats

from decdpo.studies.claims import (
    Claim,
    Verdict,
    compare,
    descends,
    fit,
    half_width,
    increasing,
    mean_of,
    slope_by_seed,
)
from decdpo.studies.table import Missing, Table


def rows(label, values, y="gap", rounds=(0, 10)):
    """One cell per seed: y is 1 at round 0 and the given value in the end."""
    found = []
    for seed, value in enumerate(values):
        for at in rounds:
            number = value if at == rounds[-1] else 1.0
            cell = f"{label}{seed}"
            found.append({"cell": cell, "name": label, "seed": seed, "round": at, y: number})
    return found


def test_final_keeps_the_last_round_of_a_cell_and_every_row_without_rounds():
    loose = [{"cell": "x", "seed": 0, "y": 1}, {"cell": "x", "seed": 0, "y": 2}]
    table = Table(rows("a", [0.5, 0.6]) + loose)
    assert [r.get("gap") for r in table.final().rows] == [0.5, 0.6, None, None]


def test_a_curve_gathers_the_seeds_in_order_of_x():
    table = Table(rows("a", [0.5, 0.6], rounds=(20, 0, 10)))
    assert table.curve("round", "gap") == [(0, [1.0, 1.0]), (10, [0.5, 0.6]), (20, [1.0, 1.0])]


def test_the_csv_holds_every_digit_and_leaves_absent_values_empty(tmp_path):
    value = 1 / 3
    Table([{"cell": "a", "y": value}, {"cell": "b", "z": 2}]).write(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as stream:
        first, second = csv.DictReader(stream)
    assert float(first["y"]) == value and second["y"] == "" and second["z"] == "2"


def test_a_comparison_is_the_paired_t_test_of_the_logarithms():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 1.5, 6), rng.uniform(0.5, 1.5, 6)
    found = compare(dict(enumerate(a)), dict(enumerate(b)))
    test = stats.ttest_rel(np.log(a), np.log(b)).confidence_interval(0.95)
    assert np.isclose(np.log(found.low), test.low) and np.isclose(np.log(found.high), test.high)
    assert found.smaller == (a < b).sum() and found.seeds == 6


def test_only_shared_seeds_are_compared():
    found = compare({0: 1.0, 1: 1.0, 7: 99.0}, {0: 2.0, 1: 2.0, 8: 0.1})
    assert found.seeds == 2 and np.isclose(found.ratio, 0.5) and found.less is True
    with pytest.raises(Missing):
        compare({0: 1.0}, {1: 1.0})


def test_a_single_seed_decides_nothing():
    assert compare({0: 1.0}, {0: 100.0}).less is None


@pytest.mark.parametrize(
    ("values", "held"),
    [
        ({"a": [1, 1.1, 0.9], "b": [5, 5.2, 5.1], "c": [9, 9.1, 9.2]}, True),
        ({"a": [1, 1.1, 0.9], "b": [5, 5.2, 5.1], "c": [3, 3.1, 3.2]}, False),
        ({"a": [1, 9, 3], "b": [5, 2, 4], "c": [9, 9.1, 9.2]}, None),
    ],
)
def test_an_order_is_held_broken_or_undecided(values, held):
    table = Table([r for name, v in values.items() for r in rows(name, v)])
    verdict = increasing(table, "gap", [(n, {"name": n}) for n in values], "because")
    assert verdict.held is held
    # What explains a broken order explains nothing where the numbers do not decide.
    assert verdict.why == ("because" if held is False else "")
    assert verdict.word in ("held", "not held", "undecided")


@pytest.mark.parametrize(
    ("ratio", "held", "why"),
    [(0.8, True, ""), (0.94, True, ""), (0.97, False, "by less than 5%"), (1.0, False, "because"),
     (1.2, False, "because")],
)  # fmt: skip
def test_an_order_counts_from_a_twentieth_on(ratio, held, why):
    # Beyond doubt in every case: the seeds agree to a tenth of a percent.
    wobble = [0.999, 1.0, 1.001]
    table = Table(rows("a", [ratio * w for w in wobble]) + rows("b", [1.0, 1.0, 1.0]))
    verdict = increasing(table, "gap", [(n, {"name": n}) for n in "ab"], "because")
    assert verdict.held is held and why in verdict.why and bool(verdict.why) is bool(why)


def test_an_order_that_may_be_too_small_is_undecided():
    table = Table(rows("a", [0.94, 0.95, 0.96]) + rows("b", [1.0, 1.0, 1.0]))
    verdict = increasing(table, "gap", [(n, {"name": n}) for n in "ab"], "because")
    assert verdict.held is None and "do not decide" in verdict.why


def test_a_norm_that_falls_by_little_has_not_fallen():
    table = Table(rows("a", [0.98, 0.981, 0.979]))
    assert descends(table, [("a", {"name": "a"})]).held is False


def test_descending_asks_for_every_curve():
    table = Table(rows("a", [0.1, 0.2, 0.15]) + rows("b", [1.5, 1.4, 1.6]))
    both = [("a", {"name": "a"}), ("b", {"name": "b"})]
    assert descends(table, both[:1]).held is True
    assert descends(table, both).held is False


def test_a_claim_on_cells_that_are_missing_is_undecided():
    claim = Claim("us", "nothing", lambda t: increasing(t, "gap", [("a", {"name": "a"})] * 2))
    verdict = claim.judge(Table([]))
    assert verdict == Verdict(None, "not measured: no finished cell has gap here")


def test_a_fit_recovers_a_power_law_and_its_interval():
    x = np.array([2.0, 5.0, 11.0, 40.0, 300.0])
    exact = fit(list(x), list(3 * x**-1.5))
    assert np.isclose(exact.value, -1.5) and np.isclose(np.exp(exact.intercept), 3)
    noisy = np.exp(np.random.default_rng(1).normal(0, 0.1, 5)) * x
    found = fit(list(x), list(noisy))
    a = np.column_stack([np.log(x), np.ones(5)])
    solution, rest, *_ = np.linalg.lstsq(a, np.log(noisy), rcond=None)
    error = np.sqrt(rest[0] / 3 * np.linalg.inv(a.T @ a)[0, 0])
    assert np.isclose(found.value, solution[0])
    assert np.isclose(found.high - found.low, 2 * stats.t.ppf(0.975, 3) * error)
    with pytest.raises(Missing):
        fit([1.0, 1.0, 2.0], [1.0, 2.0, 3.0])


def test_one_seed_gives_no_interval_and_decides_nothing():
    found = compare({0: 2.0}, {0: 4.0})
    assert (found.ratio, found.low, found.high, found.less) == (0.5, 0.0, np.inf, None)
    assert str(found) == "0.5 (one value, no interval), smaller in 1 of 1 seeds"
    assert str(mean_of({3: 0.25})) == "0.25 (one value, no interval)"
    assert str(mean_of({0: 1.0, 1: 1.0})) == "1 [1, 1]"


def test_half_width_is_students():
    values = [1.0, 2.0, 4.0, 3.0]
    interval = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert np.isclose(half_width(values), (interval[1] - interval[0]) / 2)


def test_the_slopes_of_seeds_are_the_sample():
    rows = [
        {"seed": seed, "x": x, "y": x**slope}
        for seed, slope in enumerate([-1.0, -2.0, -3.0])
        for x in (1.0, 2.0, 4.0)
    ]
    found = slope_by_seed([*rows, {"seed": 9, "x": 1.0, "y": 5.0}], "x", "y")
    assert (found.value, found.seeds) == (pytest.approx(-2.0), 3)
    # Student's quantile for three seeds, over the root of three; the points lie on their lines.
    assert found.high == pytest.approx(-2.0 + 4.302653 / 3**0.5, rel=1e-5)
    with pytest.raises(Missing):
        slope_by_seed(rows[:2], "x", "y")
