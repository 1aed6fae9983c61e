"""Schedules with another matrix in every round, which every process knows untold."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log, sqrt

import numpy as np

from decdpo.rng import Stream, generator
from decdpo.topology.graphs import hops
from decdpo.topology.row import Row


@dataclass(frozen=True)
class _Hop:
    """One round of the one-peer exponential graph: agent i receives from i + hop alone."""

    num_agents: int
    hop: int

    def row(self, agent: int) -> Row:
        n, hop = self.num_agents, self.hop
        if hop == 0:
            return Row(1.0, (), (), ())
        return Row(0.5, ((agent + hop) % n,), (0.5,), ((agent - hop) % n,))


class OnePeerExponential:
    """The one-peer exponential graph: agent i receives from one other agent in each round.

    In round t that is (i + 2**(t mod tau)) mod n, tau = ceil(log2 n); the own weight and the peer's
    are 1/2 each. If n is a power of two, tau rounds give the exact average. For other
    n the hops are the same: every round stays doubly stochastic, and a period contracts the
    distance to consensus by rho = max_m prod_k |cos(pi m 2**k / n)| <= 1/2.

    Ying et al., "Exponential graph is provably efficient for decentralized deep training", 2021,
    periodic exact averaging; the rho of other n is ours.
    """

    doubly_stochastic = True

    def __init__(self, num_agents: int) -> None:
        self.num_agents = num_agents
        self._rounds = [_Hop(num_agents, hop) for hop in hops(num_agents)] or [_Hop(1, 0)]
        self.period = len(self._rounds)
        self.symmetric = num_agents <= 2
        self.directed = not self.symmetric
        self.digest = text_digest(f"one_peer_exponential of {num_agents} agents")

    def mixing(self, round: int) -> _Hop:
        """Return the weights of ``round``."""
        return self._rounds[round % self.period]

    @cached_property
    def _contractions(self) -> np.ndarray:
        """||W_{t-1} ... W_0 - J||_2 for t = 1 ... tau, (tau,): circulant, so by eigenvalues."""
        modes = np.arange(1, self.num_agents)
        if not modes.size:
            return np.zeros(1)
        hop = np.array(hops(self.num_agents))[:, None]
        # the angle is reduced exactly, in integers, so that cos(pi/2) is as small as it can be
        angle = np.pi * ((modes * hop) % self.num_agents) / self.num_agents
        worst = np.cumprod(np.abs(np.cos(angle)), axis=0).max(axis=1)
        return np.where(worst < 1e-14, 0.0, worst)

    @property
    def rho(self) -> float:
        """The contraction factor of a whole period; 0 if n is a power of two."""
        return float(self._contractions[-1])

    @property
    def spectral_gap(self) -> float:
        """1 - rho."""
        return 1 - self.rho

    @property
    def rounds_to_halve(self) -> int | None:
        """The first round, counted from a period's start, with contraction 1/2 or better."""
        if self.num_agents == 1:
            return 0
        return 1 + int((self._contractions <= 0.5 + 1e-12).argmax())

    @property
    def num_sources(self) -> np.ndarray:
        """One neighbour for every agent, (n,) int64."""
        return np.full(self.num_agents, int(self.num_agents > 1))


class _Matching:
    """One round of a random matching: ``partner[i]`` of agent i, itself if it is left alone."""

    def __init__(self, partner: list[int]) -> None:
        self.partner = partner

    def row(self, agent: int) -> Row:
        peer = self.partner[agent]
        if peer == agent:
            return Row(1.0, (), (), ())
        return Row(0.5, (peer,), (0.5,), (peer,))


class RandomMatching:
    """A uniformly random matching of all agents in every round; pairs average, weights 1/2.

    With odd n one agent, another each time, is left alone. The round's own random numbers make it:
    nothing needs saving. As W_t is a projection, E ||x_{t+1} - mean||^2 = x^T (E W) x, hence
    rho^2 = lambda_2(E W): (n - 2) / (2 (n - 1)) for even n, 1/2 for odd n > 1. Boyd et al.,
    "Randomized gossip algorithms", 2006.
    """

    period = 1
    directed = False
    symmetric = True
    doubly_stochastic = True

    def __init__(self, num_agents: int, seed: int = 0) -> None:
        self.num_agents = num_agents
        self.seed = seed
        self.digest = text_digest(f"random_matching of {num_agents} agents, seed {seed}")
        self._recent: dict[int, _Matching] = {}

    def mixing(self, round: int) -> _Matching:
        """Return the matching of ``round``."""
        matching = self._recent.get(round)
        if matching is None:
            n = self.num_agents
            order = generator(self.seed, Stream.TOPOLOGY, round=round).permutation(n)
            partner = np.arange(n)
            left, right = order[0 : n - 1 : 2], order[1::2]
            partner[left], partner[right] = right, left
            matching = _Matching(partner.tolist())
            while len(self._recent) > 3:
                del self._recent[min(self._recent)]
            self._recent[round] = matching
        return matching

    @property
    def rho(self) -> float:
        """The root of the expected factor on the squared distance to consensus in a round."""
        n = self.num_agents
        if n == 1:
            return 0.0
        return sqrt(0.5 if n % 2 else (n - 2) / (2 * (n - 1)))

    @property
    def spectral_gap(self) -> float:
        """1 - rho."""
        return 1 - self.rho

    @property
    def rounds_to_halve(self) -> int | None:
        """The rounds after which the distance has halved, in the root of the mean square."""
        return rounds_to_halve(self.num_agents, self.spectral_gap)

    @property
    def num_sources(self) -> np.ndarray:
        """From how many neighbours each agent receives in any round, (n,) int64."""
        partner = np.array(self.mixing(0).partner)
        return (partner != np.arange(self.num_agents)).astype(np.int64)


def rounds_to_halve(num_agents: int, gap: float) -> int | None:
    """Return the smallest t with (1 - gap)**t <= 1/2; None if there is none."""
    if num_agents == 1:
        return 0
    if gap <= 0:
        return None
    if gap >= 0.5:
        return 1
    return ceil(log(0.5) / np.log1p(-gap) - 1e-9)


def text_digest(text: str) -> str:
    """Return the SHA-256 of ``text``, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
