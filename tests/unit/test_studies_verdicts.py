"""What the studies' claims say of numbers that decide them, and of numbers that do not."""

import numpy as np
import pytest

from decdpo.studies.builtin.heterogeneity import METHODS
from decdpo.studies.catalogue import builtin
from decdpo.studies.claims import all_of, fit, mean_of, seed_means, within
from decdpo.studies.table import Table

SEEDS = range(5)


def verdict(name, words, rows):
    """The verdict of the one claim of a study whose text has these words."""
    (claim,) = [c for c in builtin(name).claims() if words in c.text]
    return claim.judge(Table(rows))


def final(labels, seed, **numbers):
    return {"cell": f"{labels}{seed}", **labels, "seed": seed, "round": 80, **numbers}


def test_a_range_is_decided_by_the_whole_interval():
    assert within(1.2, 1.8, 1, 2) is True
    assert within(0.2, 0.9, 1, 2) is False and within(2.1, 3.0, 1, 2) is False
    assert within(0.9, 1.1, 1, 2) is None and within(0.0, 9.0, 1, 2) is None
    assert all_of([True, None, False]) is False and all_of(iter([True, None])) is None
    assert all_of([True, True]) is True
    assert mean_of({0: 1.5}).within(1, 2) is None
    assert mean_of({0: 1.5, 1: 1.5}).within(1, 2) is True


def test_seeds_of_a_graph_do_not_narrow_the_interval_of_a_fit():
    # Off the line by graph and not by seed: more seeds tell nothing of the slope.
    places = {"a": (1, 1.0), "b": (10, 30.0), "c": (100, 50.0), "d": (1000, 2000.0)}

    def rows(seeds):
        return [
            {"graph": g, "n": 8, "seed": s, "x": x, "y": y * 1.01**s}
            for g, (x, y) in places.items()
            for s in range(seeds)
        ]

    def slope(seeds):
        points = seed_means(rows(seeds), ("graph", "n"), ("x", "y"))
        return fit([r["x"] for r in points], [r["y"] for r in points])

    assert slope(5).points == slope(1).points == 4
    assert np.isclose(slope(5).low, slope(1).low) and np.isclose(slope(5).high, slope(1).high)
    assert seed_means(rows(3), ("graph",), ("y",))[0]["y"] == pytest.approx(1.01)


def graphs(distance):
    """Final rows of five graphs and seeds; ``distance`` is a function of 1 / (1 - rho)."""
    rng = np.random.default_rng(3)
    return [
        final({"graph": f"g{x}"}, s, rho=1 - 1 / x, consensus_distance=distance(x) * e)
        for x in (2, 4, 16, 64, 256)
        for s, e in zip(SEEDS, np.exp(rng.normal(0, 0.001, len(SEEDS))), strict=True)
    ]


@pytest.mark.parametrize(
    "distance, held",
    [
        (lambda x: x**1.5, True),
        (lambda x: x**0.5, False),
        (lambda x: x**3.0, False),
        # A wide interval that overlaps the range, as any does that is wide enough.
        (lambda x: x * (30 if x in (4, 64) else 1), None),
    ],
)
def test_the_exponent_over_graphs_holds_only_inside_its_range(distance, held):
    found = verdict("topology", "graph to graph", graphs(distance))
    assert found.held is held and "5 points" in found.numbers


@pytest.mark.parametrize("power, held", [(1.0, True), (1.2, False)])
def test_rounds_to_consensus_are_fitted_with_a_point_for_each_graph_and_size(power, held):
    rows = [
        {"cell": f"{g}{n}{s}", "kind": "mixing", "start": "random", "graph": g, "agents": n}
        | {"seed": s, "inverse_gap": n * k, "rounds": 7 * (n * k) ** power * (1 + s / 100)}
        for k, g in enumerate(("ring", "torus"), 1)
        for n in (8, 16, 32)
        for s in SEEDS
    ]
    found = verdict("topology-scaling", "random values", rows)
    assert found.held is held and "6 points" in found.numbers


def test_a_slope_that_may_be_outside_of_its_tolerance_is_undecided():
    rows = [
        {"cell": str(n), "kind": "mixing", "start": "opposed", "graph": "ring", "agents": n}
        | {"seed": 0, "inverse_gap": n, "rounds": n * wobble}
        for n, wobble in ((8, 1.0), (16, 1.4), (32, 0.8), (64, 1.1))
    ]
    found = verdict("topology-scaling", "opposed camps", rows)
    assert found.held is None and "4 points" in found.numbers


@pytest.mark.parametrize("power, held", [(1.5, True), (0.5, False), (0.02, False)])
def test_the_training_exponent_has_a_point_for_each_graph_and_size(power, held):
    rows = [
        final({"kind": "training", "graph": g, "agents": n}, s)
        | {"inverse_gap": n * k, "consensus_distance": (n * k) ** power * (1 + s / 100)}
        for k, g in enumerate(("ring", "star"), 1)
        for n in (8, 16)
        for s in SEEDS
    ]
    found = verdict("topology-scaling", "DecDPO", rows)
    assert found.held is held and "3 points" not in found.numbers and "4 points" in found.numbers


def gaps_of(exponent, spread=0.0):
    """Final gaps of eta = 0.01 that grow as E to the ``exponent``, off by seed."""
    return [
        final({"lr": 0.01, "E": e}, s, gap=0.5 * e ** (exponent + spread * (s - 2)), gap_tail=1.0)
        for e in (1, 3, 6)
        for s in SEEDS
    ]


@pytest.mark.parametrize(
    "exponent, spread, held, why",
    [
        (-0.016, 1e-4, False, "less than the term says"),
        (-0.4, 0.01, False, "less than the term says"),
        (-1.0, 0.01, True, ""),
        (-1.7, 0.01, True, ""),
        (-0.8, 0.1, None, ""),
        (0.0, 0.01, False, "hardly depends"),
        (0.6, 0.01, False, "grow with E"),
    ],
)
def test_a_term_dominates_by_the_size_of_its_exponent(exponent, spread, held, why):
    found = verdict("local-steps", "at eta 0.01 the term", gaps_of(exponent, spread))
    assert found.held is held and why in found.why and bool(found.why) is bool(why)


def test_the_source_s_measure_is_met_by_the_whole_interval():
    theirs = {1: 1.0, 3: 0.4616, 6: 0.1554}

    def rows(factors):
        return [
            final({"lr": 0.01, "E": e}, s, gap=0.5, clipped_gradient_sq=gap * factor)
            for e, gap in theirs.items()
            for s, factor in enumerate(factors)
        ]

    words = "to a factor of 2, eta 0.01"
    assert verdict("local-steps", words, rows([0.9, 1.0, 1.1])).held is True
    assert verdict("local-steps", words, rows([0.3, 0.7, 1.6])).held is None
    assert verdict("local-steps", words, rows([0.2, 0.21, 0.22])).held is False


def test_a_bound_below_what_it_bounds_is_not_tight():
    rows = [
        final({"method": "FedDPO E=1", "lr": 0.1}, s, ratio=0.1, bound=1.0, mean_gradient_sq=10.0)
        for s in SEEDS
    ]
    assert verdict("rates", "by a factor of 10", rows).held is False


def shares(exponent, spread):
    """Final gaps that fall like S to the ``exponent``, which differs from seed to seed."""
    offsets = spread * np.linspace(-1, 1, len(SEEDS))
    rows = []
    for seed in SEEDS:
        for size in (2, 4, 8, 16):
            gap = 10.0**seed * size ** (exponent + offsets[seed])
            rows.append(final({"S": size}, seed, gap_tail=gap))
    return rows


@pytest.mark.parametrize(
    "exponent, spread, held",
    [(-1.1, 0.05, True), (-2.0, 0.05, False), (-0.5, 0.05, False), (-1.3, 0.3, None),
     (-1.0, 5.0, None)],
)  # fmt: skip
def test_one_over_s_is_judged_by_the_seeds_own_slopes(exponent, spread, held):
    found = verdict("participation", "1/S", shares(exponent, spread))
    assert found.held is held and f"exponent {exponent:.4g} [" in found.numbers
    assert "5 seeds" in found.numbers and bool(found.why) is (held is not True)


def test_a_seed_without_all_sizes_has_no_slope():
    rows = [r for r in shares(-1.0, 0.05) if not (r["seed"] == 4 and r["S"] == 4)]
    assert "4 seeds" in verdict("participation", "1/S", rows).numbers
    few = [r for r in shares(-1.0, 0.05) if r["S"] > 2]
    assert verdict("participation", "1/S", few).held is None


def accuracies(ours, seeds=SEEDS):
    key = "heldout/average/accuracy"
    rows = [final({"kappa": 1.0, "method": m}, s, **{key: 0.6}) for m in METHODS for s in SEEDS]
    return [
        {**r, key: 0.6 + ours[r["seed"]]} if r["method"] == "FedDPO" else r
        for r in rows
        if r["method"] != "FedDPO" or r["seed"] in seeds
    ]


@pytest.mark.parametrize(
    "ours, held",
    [
        ([0.01, 0.012, 0.011, 0.009, 0.01], True),
        ([0.05, 0.052, 0.051, 0.049, 0.05], False),
        # The mean is within two points, what the seeds say of it is not.
        ([0.06, -0.05, 0.04, -0.03, 0.03], None),
    ],
)
def test_as_accurate_is_decided_by_the_seeds(ours, held):
    assert verdict("heterogeneity", "FedDPO is as accurate", accuracies(ours)).held is held


def test_a_seed_that_is_not_there_is_not_counted_as_equal():
    found = verdict("heterogeneity", "FedDPO is as accurate", accuracies([0.05] * 5, (0, 1)))
    assert found.held is False and "+0.0500" in found.numbers
    alone = verdict("heterogeneity", "FedDPO is as accurate", accuracies([0.0] * 5, (0,)))
    assert alone.held is None
    theirs = [r for r in accuracies([0.0] * 5, (0,)) if r["method"] != "centralized" or r["seed"]]
    assert "share no seed" in verdict("heterogeneity", "FedDPO is as accurate", theirs).numbers


def stale(gaps, spread=0.0, **more):
    """Final rows at the smallest step; ``gaps`` by q, off by ``spread`` from seed to seed."""
    offsets = np.exp(spread * np.linspace(-1, 1, len(SEEDS)))
    return [
        final({"lr": 0.01, "q": q}, s, gap=gap * offsets[s] ** (-1 if q else 1), **more)
        for q, gap in gaps.items()
        for s in SEEDS
    ]


def test_flat_is_undecided_where_the_seeds_lie_on_both_sides():
    words = "stay flat"
    assert verdict("staleness", words, stale({0: 0.5, 2: 0.97, 5: 0.98}, 0.001)).held is True
    assert verdict("staleness", words, stale({0: 0.5, 2: 0.97, 5: 0.98}, 0.1)).held is None
    assert verdict("staleness", words, stale({0: 0.5, 2: 0.6, 5: 0.7}, 0.001)).held is False


def test_too_small_a_step_is_not_laid_to_staleness():
    found = verdict("staleness", "stay flat", stale({0: 0.977, 2: 0.986, 5: 0.991}, 1e-4))
    assert found.held is False and "q = 0 too" in found.why and "gossip" not in found.why


def test_the_slowdown_is_decided_by_the_seeds():
    fresh = 0.4
    gaps = {0: fresh, **{q: fresh ** (1 / (1 + q / 3)) for q in (2, 5)}}
    words = "divides the speed"
    assert verdict("staleness", words, stale(gaps, 0.001)).held is True
    assert verdict("staleness", words, stale(gaps, 0.1)).held is None
    assert verdict("staleness", words, stale({**gaps, 5: 0.45}, 0.001)).held is False
    # A seed that only one of them has is left out.
    short = [r for r in stale(gaps, 0.001) if r["q"] or r["seed"] < 3]
    assert verdict("staleness", words, short).held is True
