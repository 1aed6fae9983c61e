"""How long a round takes on a network: latency, cost of a message, seconds per byte.

A message of m bytes takes L + o + G m from one agent to another: L is latency, o what beginning and
taking a message costs at its ends, G the inverse of an agent's bandwidth, each way. Messages of one
agent share its link and wait for their latency together. So a round of gossip with d neighbours and
averaging all n agents by the usual algorithms take

    gossip                 L + d (o + G m)
    recursive doubling     ceil(log2 n) (L + o + G m)
    halving and doubling   2 ceil(log2 n) (L + o) + 2 (n - 1) / n G m

This is LogGP (Alexandrov, Ionescu, Schauser, Scheiman 1995) without its gap; the algorithms are
those of Thakur, Rabenseifner and Gropp 2005. Nobody computes and nobody is slow: that an all-reduce
waits for the slowest of all agents, and a round for that of the neighbours, is not in it, nor is a
network whose links are shared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from decdpo.errors import ConfigError

THOUSANDTH = 1e-3
"""Of the distance to the average at the start, at which agents count as averaged."""


@dataclass(frozen=True)
class Link:
    """What messages cost. latency, overhead : seconds, L and o. per_byte : seconds, G.

    Raises ``ConfigError`` for negative or infinite values.
    """

    latency: float
    overhead: float
    per_byte: float

    def __post_init__(self) -> None:
        values = (self.latency, self.overhead, self.per_byte)
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ConfigError(
                f"a network with a latency of {self.latency} s, {self.overhead} s a message and "
                f"{self.per_byte} s a byte",
                "give numbers of at least 0",
            )

    def gossip(self, degree: int, message_bytes: float) -> float:
        """Return the seconds of a round in which an agent has ``degree`` neighbours."""
        if degree == 0:
            return 0.0
        return self.latency + degree * (self.overhead + self.per_byte * message_bytes)

    def recursive_doubling(self, num_agents: int, message_bytes: float) -> float:
        """Return the seconds of an all-reduce in which partners exchange all they have."""
        steps = math.ceil(math.log2(num_agents))
        return steps * (self.latency + self.overhead + self.per_byte * message_bytes)

    def halving_and_doubling(self, num_agents: int, message_bytes: float) -> float:
        """Return the seconds of an all-reduce in which sums of pieces are spread and gathered."""
        steps = 2 * math.ceil(math.log2(num_agents))
        share = 2 * (num_agents - 1) / num_agents
        return steps * (self.latency + self.overhead) + share * self.per_byte * message_bytes

    def all_reduce(self, num_agents: int, message_bytes: float) -> float:
        """Return the seconds of the faster of the two."""
        ways = self.recursive_doubling, self.halving_and_doubling
        return min(way(num_agents, message_bytes) for way in ways)


@dataclass(frozen=True)
class Timed:
    """Seconds of a graph on a network.

    round_seconds : of one round. thousandth_seconds : until the distance to the average is a
    thousandth of its first value, infinite if it never is. all_reduce_seconds : of averaging all
    agents at once.
    """

    round_seconds: float
    thousandth_seconds: float
    all_reduce_seconds: float

    @classmethod
    def of(
        cls,
        link: Link,
        num_agents: int,
        degree: int,
        message_bytes: float,
        rho: float,
        period: int = 1,
    ) -> "Timed":
        """Say what a graph takes whose busiest agent has ``degree`` neighbours in a round.

        rho : factor of ``period`` rounds.
        """
        once = link.gossip(degree, message_bytes)
        rounds = rounds_to(THOUSANDTH, rho, period)
        return cls(once, rounds * once, link.all_reduce(num_agents, message_bytes))


def fit(rounds: Sequence[tuple[int, float, float]]) -> Link:
    """Return the network that explains rounds of gossip best, in relative error.

    rounds : (degree, bytes of a message, seconds) of each. Least squares with constants of at least
    0. Raises ``ConfigError`` where they cannot tell the three constants apart.
    """
    terms = np.array([(1.0, degree, degree * size) for degree, size, _ in rounds])
    seconds = np.array([taken for _, _, taken in rounds])
    if len(rounds) < 3 or np.linalg.matrix_rank(terms / np.abs(terms).max(axis=0)) < 3:
        raise ConfigError(
            f"{len(rounds)} timed rounds cannot tell latency, overhead and bandwidth apart",
            "time rounds of at least two degrees and two sizes",
        )
    # Columns of one scale, or the solver takes seconds per byte for nothing.
    scaled = terms / seconds[:, None]
    scale = np.abs(scaled).max(axis=0)
    found, _ = nnls(scaled / scale, np.ones(len(rounds)))
    return Link(*(float(value) for value in found / scale))


def rounds_to(share: float, rho: float, period: int = 1) -> float:
    """Return the rounds after which the distance to the average is ``share`` of its first value.

    rho : factor of ``period`` rounds; 0 averages in so many, and 1 never.
    """
    if rho >= 1:
        return math.inf
    return period * max(1.0, math.log(share) / math.log(rho)) if rho > 0 else float(period)
