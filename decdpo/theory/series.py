"""The mean over a run's rounds of what only some of its rounds recorded."""

from collections.abc import Sequence

import numpy as np

from decdpo.errors import DataError


def mean_over_rounds(rounds: Sequence[int], values: Sequence[float]) -> float:
    """Return the mean over rounds t = first ... last - 1 of a quantity g_t known in some of them.

    A bound is about the models that the rounds start from, so the last record counts only through
    the straight lines between records. With the trapezoid rule T for the integral of g,

        sum_{t = first}^{last - 1} g_t ~ T + (g_first - g_last) / 2,

    which is exact where every round is recorded, and where g is linear between the records.

    Parameters
    ----------
    rounds : ascending, the number of rounds done when each value was taken; 0 is the start.
    values : g at each of them. A single one is returned as it is.
    """
    t, g = np.asarray(rounds, dtype=float), np.asarray(values, dtype=float)
    if t.ndim != 1 or t.shape != g.shape or not t.size or (np.diff(t) <= 0).any():
        raise DataError(
            f"{t.size} rounds and {g.size} values are no series: {list(rounds)[:6]}",
            "give one value for each of at least one round, in ascending order",
        )
    if t.size == 1:
        return float(g[0])
    integral = np.diff(t) @ (g[1:] + g[:-1]) / 2
    return float((integral + (g[0] - g[-1]) / 2) / (t[-1] - t[0]))
