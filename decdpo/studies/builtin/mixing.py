"""How many rounds of pure mixing, without gradients, bring the agents to a target consensus.

Agents begin at x_0 (n, d) and repeat x <- W_t x. What is counted is the first round with
||x_t - mean||^2 <= target ||x_0 - mean||^2, for two starts:

random  : every agent draws its own value from N(0, 1).
opposed : the first half of the agents holds +1, the second -1: two camps, far apart on graphs that
          are long in the order of their agents.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import eigsh

from decdpo.rng import Stream, generator
from decdpo.studies.cells import Direct
from decdpo.studies.table import Row
from decdpo.topology.mixing import MixingMatrix
from decdpo.topology.schedule import Static, Topology, make_schedule, round_weights

MOST_ROUNDS = (10_000, 30_000)
"""Rounds taken one by one before a slow matrix is tried by its slowest modes, and tried again."""

MODES = 96
WIDTH = 4
STARTS = ("random", "opposed")


@dataclass(frozen=True)
class Consensus(Direct):
    """Rounds to consensus on one graph.

    graph, agents, seed : of the schedule, with automatic weights. start : one of ``STARTS``.
    target : of the squared distance, over its first value.
    """

    graph: str
    agents: int
    seed: int
    start: str
    target: float

    def measure(self) -> list[Row]:
        """Return the rounds, with the gap of a round, (1 - rho of a period) / period."""
        schedule = make_schedule(self.graph, "auto", self.agents, seed=self.seed)
        x = starting_point(self.start, self.agents, self.seed)
        # Per round, as the bounds count it, so that schedules of different period compare.
        gap = schedule.spectral_gap / schedule.period
        return [
            {
                "rounds": rounds_to_consensus(schedule, x, self.target),
                "rho": 1 - gap,
                "spectral_gap": gap,
                "inverse_gap": 1 / gap,
            }
        ]


def starting_point(start: str, agents: int, seed: int) -> np.ndarray:
    """Return x_0 (n, d); see the module."""
    if start == "random":
        rng = generator(seed, Stream.INITIAL_MODEL, agents)
        return rng.standard_normal((agents, WIDTH))
    camp = np.where(np.arange(agents) < agents // 2, 1.0, -1.0)
    return camp[:, None]


def rounds_to_consensus(schedule: Topology, x: np.ndarray, target: float) -> int | None:
    """Return the first t with ||x_t - mean||^2 <= target ||x_0 - mean||^2.

    Rounds are taken one by one as far as ``MOST_ROUNDS``; from there on a symmetric matrix is
    followed along its slowest eigenvectors, in closed form. None if neither ends.

    x : (n, d), left as it is.
    """
    x = x - x.mean(axis=0)
    goal = target * float((x**2).sum())
    weights = _matrix(schedule, 0)
    done = 0
    for most in MOST_ROUNDS:
        for _ in range(most):
            x = weights @ x
            done += 1
            if float(np.vdot(x, x)) <= goal:
                return done
            if not isinstance(schedule, Static):
                weights = _matrix(schedule, done)
        if isinstance(schedule, Static) and schedule.symmetric:
            more = _modal_rounds(weights, x, goal)
            if more is not None:
                return done + more
    return None


def _modal_rounds(weights: csr_array, x: np.ndarray, goal: float) -> int | None:
    """Return the first t with ||W^t x||^2 <= goal, from the ``MODES`` slowest modes of W.

    None if x has more than 1e-3 of the goal outside of them.
    """
    laplacian = (eye_array(len(x)) - weights).tocsc()
    start = generator(0, Stream.TOPOLOGY, len(x)).standard_normal(len(x))
    # Shift and invert next to 0, which is an eigenvalue itself.
    values, modes = eigsh(
        laplacian, k=min(MODES, len(x) - 2), sigma=-1e-9, which="LM", v0=start
    )
    along = modes.T @ x
    if float(((x - modes @ along) ** 2).sum()) > 1e-3 * goal:
        return None
    kept = values > 1e-12
    energy = (along[kept] ** 2).sum(axis=1)
    decay = 2 * np.log1p(-np.minimum(values[kept], 1 - 1e-15))

    def left(rounds: int) -> float:
        return float(energy @ np.exp(decay * rounds))

    low, high = 0, 1
    while left(high) > goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) > goal else (low, middle)
    return high


def _matrix(schedule: Topology, round: int) -> csr_array:
    """Return the weights (n, n) of one round."""
    mixing = schedule.mixing(round)
    if isinstance(mixing, MixingMatrix):
        return mixing.weights
    return round_weights(mixing, schedule.num_agents)
