"""The means over rounds that the bounds speak of, and what the study of the rates makes of them."""

import numpy as np
import pytest

from decdpo.studies.builtin.rates import tight
from decdpo.studies.catalogue import builtin
from decdpo.studies.table import Table

SEEDS = range(5)


def verdict(words, rows):
    """The verdict of the one claim of the study whose text has these words."""
    (claim,) = [c for c in builtin("rates").claims() if words in c.text]
    return claim.judge(Table(rows))


def final(labels, seed, **numbers):
    return {"cell": f"{labels}{seed}", **labels, "seed": seed, "round": 80, **numbers}


CHOICES = [("FedDPO E=1", 0.1), ("FedDPO E=3", 0.1), ("DecDPO ring", 0.1), ("DecDPO ring", 1.0)]


def bounds(measured, ratio=2.0):
    """Final rows of four choices, whose bounds are 1 ... 4; ``measured`` is a function of both."""
    rows = []
    for seed in SEEDS:
        for k, (method, lr) in enumerate(CHOICES, 1):
            terms = {"initial": 0.6 * k, "noise": 0.1 * k, "drift": 0.3 * k, "drift_noise": 0.0}
            mean = measured(k, seed)
            numbers = {"bound": k, "mean_gradient_sq": mean, "ratio": ratio, **terms}
            rows.append(final({"method": method, "lr": lr}, seed, **numbers))
    return rows


def test_the_ranks_of_bounds_are_judged_seed_by_seed():
    words = "rank correlation"
    assert verdict(words, bounds(lambda k, s: k)).held is True
    assert verdict(words, bounds(lambda k, s: -k)).held is False
    # In the mean over the seeds they are in order; not so in every seed.
    mixed = verdict(words, bounds(lambda k, s: k + (10 if s < 2 and k == 1 else 0)))
    assert mixed.held is None


def test_a_loose_bound_is_explained_by_its_largest_term():
    found = tight(Table(bounds(lambda k, s: k, ratio=50.0)))
    assert found.held is False and "for 4 choices 2 Delta / (eta E R)" in found.why
    assert "drift" not in found.why
    assert tight(Table(bounds(lambda k, s: k))).held is True
    rows = bounds(lambda k, s: k, ratio=10.0)
    apart = [{**row, "ratio": row["ratio"] * (0.8 + 0.1 * row["seed"])} for row in rows]
    assert tight(Table(apart)).held is None


def decay(every, rounds=80):
    """Records of a squared gradient that falls from 1 by a tenth each round."""
    return [
        {"cell": "x", "seed": 0, "round": t, "gradient_norm": 0.9 ** (t / 2), "loss": 0.5}
        for t in range(0, rounds + 1, every)
    ]


def test_the_mean_over_rounds_does_not_hang_on_how_often_they_are_recorded():
    exact = np.mean(0.9 ** np.arange(80))
    for every, error in ((1, 1e-12), (2, 0.003), (4, 0.016)):
        table = Table([{**r, "setting": "s"} for r in decay(every)])
        builtin("advisor").derive(table)
        assert table.rows[-1]["mean_gradient_sq"] == pytest.approx(exact, rel=error)


def test_the_running_mean_of_the_rates_is_over_the_rounds_so_far():
    known = {
        "cell": "c", "method": "constants", "lr": None, "seed": 0, "smoothness": 1.0, "gap": 1.0,
        "smoothness_max": 1.0, "gradient_sq": 1.0, "kappa_sq": 0.1, "zeta_sq": 0.1, "num_agents": 4,
    }  # fmt: skip
    table = Table([known, *({**r, "method": "FedDPO E=1", "lr": 0.1} for r in decay(2))])
    builtin("rates").derive(table)
    for row in table.rows[2:]:
        exact = np.mean(0.9 ** np.arange(row["round"]))
        assert row["mean_gradient_sq"] == pytest.approx(exact, rel=0.003)
