"""How often to save: what a failure loses against what saving costs.

A failure loses on average half of the interval, saving costs the time of a write in each one.
Young (1974) minimizes their sum to first order by sqrt(2 W M), W the time of a write and M the mean
time between failures; Daly (2006, equation 37) adds

    tau = sqrt(2 W M) (1 + sqrt(W / (2 M)) / 3 + W / (18 M)) - W     for W < 2 M,
    tau = M                                                          otherwise.
"""

import math

LARGEST_SHARE = 0.02
"""Of the time that may be spent on writing, whatever failures would suggest."""


def interval(write: float, between_failures: float) -> float:
    """Return the seconds from the begin of one save to that of the next.

    write : seconds that a save takes until it is on disk. between_failures : mean seconds.
    """
    ratio = write / (2.0 * between_failures)
    if ratio >= 1.0:
        best = between_failures
    else:
        best = math.sqrt(2.0 * write * between_failures)
        best *= 1.0 + math.sqrt(ratio) / 3.0 + ratio / 9.0
    return max(best, write / LARGEST_SHARE)
