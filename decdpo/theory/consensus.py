"""How far apart the agents would be, had every round pushed them apart as the first did.

A round of DecDPO pushes the agents apart by their unlike gradients, then mixing contracts what
there is by rho. With Xi_t = mean_i ||x_i - x_bar||^2 after t rounds and c_t the push of round t as
it is after mixing, constant pushes add up, and independent ones do in the mean square:

    aligned       sqrt(Xi_t) <= rho sqrt(Xi_t-1) + sqrt(c_t)   limit c / (1 - rho)^2
    independent   Xi_t <= rho^2 Xi_t-1 + c_t                   limit c / (1 - rho^2)

These are the two terms of the bounds, of unlike users and of the noise of batches (``bounds``). The
push is taken from the first record after the start, and follows the square of the step size. A run
between the curves is of both kinds; one below has gradients that shrink, or disagreement that the
graph mixes faster than its slowest mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """Xi at the recorded rounds, (K,) each, if the pushes of the rounds are of one kind."""

    aligned: tuple[float, ...]
    independent: tuple[float, ...]


def predict(
    rounds: Sequence[int], distances: Sequence[float], rho: float, step: Callable[[int], float]
) -> Prediction | None:
    """Return what ``rho`` predicts at ``rounds``, ascending, where ``distances`` were measured.

    distances : (K,) Xi at each of them. rho : by which a round contracts, in [0, 1). step : returns
    the step size of a round, from 1. None without a distance above 0 after round 0.
    """
    first = next((k for k, t in enumerate(rounds) if t > 0 and distances[k] > 0), None)
    if first is None or not 0 <= rho < 1 or step(1) <= 0:
        return None
    length, square = np.zeros(rounds[-1] + 1), np.zeros(rounds[-1] + 1)
    for t in range(1, rounds[-1] + 1):
        push = step(t) / step(1)
        length[t] = rho * length[t - 1] + push
        square[t] = rho**2 * square[t - 1] + push**2
    at, anchor = np.asarray(rounds), rounds[first]
    if not square[anchor]:
        return None
    aligned = distances[first] * (length[at] / length[anchor]) ** 2
    independent = distances[first] * square[at] / square[anchor]
    return Prediction(tuple(aligned.tolist()), tuple(independent.tolist()))
