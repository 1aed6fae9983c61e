"""Upper bounds on the mean of ||grad L(x_bar)||^2 over a run, with every constant written out.

With Delta = L(x_0) - L*, R rounds of E local steps of size eta, heterogeneity kappa^2, batch
gradient noise zeta^2, smoothness L of the global objective, and M = max_i L_i of one agent's: how
far an agent's gradient turns while it is on its own is up to its own curvature, which may be n L.

kappa^2 and zeta^2 must hold at every model that the run passes. They are measured where it starts:
a bound with them assumes that they do not grow from there.

FedDPO, S of n participants (the form of Jiang, "Distributed Direct Preference Optimization", 2026,
Theorem 5.1; the source leaves the constants open, we take 2 for the first and 1 for the others):

    2 Delta / (eta E R) + M^2 eta^2 E kappa^2 + M^2 eta^2 E^2 zeta^2 / S + L eta zeta^2 / S
    + L eta E kappa^2 (n - S) / (S (n - 1))                                                  (1)

The last term is ours: it is the variance of drawing S of n unlike users, without which a bound
would never prefer more participants but for the noise. It vanishes at S = n. We claim (1) for
eta <= 1 / (M E).

DecDPO, one round contracting the distance to consensus by rho (ours; the source's Theorem 6.1, of
which its authors' public program says that the distance grows as eta^2 / (1 - rho^2), is unknown to
us beyond that):

    2 Delta / (eta E R) + L eta zeta^2 / n
    + M^2 eta^2 (2 E zeta^2 / (1 - rho) + 4 E^2 kappa^2 / (1 - rho)^2)                       (2)

For E = 1 and eta <= (1 - rho) / (2 M) this is a theorem with these constants. Write Xi_t for
mean_i ||x_i - x_bar||^2. From x_i <- sum_j w_ij x_j - eta g_i, Young's inequality with the factor
1/rho - 1, and ||grad L_i(x_i) - mean_j grad L_j(x_j)||^2 <= 2 M^2 Xi + 2 kappa^2 on average,

    Xi_t+1 <= (rho + 2 M^2 eta^2 / (1 - rho)) Xi_t + 2 eta^2 kappa^2 / (1 - rho) + eta^2 zeta^2,

whose factor is at most (1 + rho) / 2, so Xi <= 4 eta^2 kappa^2 / (1 - rho)^2 + 2 eta^2 zeta^2 /
(1 - rho); and the descent lemma gives mean ||grad L(x_bar)||^2 <= 2 Delta / (eta R) + M^2 Xi +
L eta zeta^2 / n. For E > 1 the same argument gives 24 and 48 in place of 2 and 4 if eta E M <=
(1 - rho) / sqrt(32); we keep 2 and 4, for a jump by 12 from E = 1 to 2 would decide every
comparison. At rho = 0 it is the usual bound of local SGD with all agents.

Weights that repeat after tau rounds need not contract in any one of them. If any tau rounds in a
row contract by rho_tau, (2) holds with the gap 1 - rho = (1 - rho_tau) / tau (``per_round``), not
with rho_tau^(1/tau). What a round adds to the distance has gone through floor(t / tau) periods t
rounds later, and no round expands: constant pushes add up to at most tau (1 + rho_tau + ...) =
1 / (1 - rho) of them, independent ones in the mean square to tau (1 + rho_tau^2 + ...), no more.
With D^2 = sup_t E Xi_t, Minkowski's inequality then reads

    D <= eta (kappa + M D) / (1 - rho) + eta zeta / sqrt(1 - rho),

so D^2 <= (A + B)^2 / (1 - c)^2 with A, B the two terms at D = 0 and c = eta M / (1 - rho). That is
at most 4 A^2 + 2 B^2, which is (2), for c <= 1/8. Up to our limit c = 1/2 it is 4 A^2 without
noise, 4 B^2 without heterogeneity, and 8 of both together; we keep 2 and 4 there, for the same
reason as above.

Staleness, messages up to q rounds late, own weight w (ours: of Theorem 5.5 we know the
penalty C_q q_max alone, and it stands among the theorems on FedDPO, not on gossip):

    (1 + q (1 - w)) 2 Delta / (eta E R) + the rest of (2)
    + 2 M^2 eta^2 E^2 q^2 G^2 / (1 - rho)^2                                                  (3)

The average of the agents moves by v = -(1 - w) q v - eta g in a round where a share 1 - w of it is
q rounds old: stale gossip divides the step by 1 + q (1 - w). The last term is the distance to
consensus that moves of at most eta E G, G^2 = E ||g||^2, leave open in q rounds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from decdpo.errors import ConfigError

_POWERS = {"initial": -1, "noise": 1, "participation": 1}


@dataclass(frozen=True)
class Problem:
    """What the bounds need to know of a problem.

    smoothness : L, of the global objective. smoothness_max : M = max_i L_i, of the least smooth
    agent's; at least L. gap : Delta, what the loss can still fall. kappa_sq : kappa^2. zeta_sq :
    zeta^2 of a batch. gradient_sq : G^2, mean square norm of an agent's batch gradient.
    num_agents : n.
    """

    smoothness: float
    smoothness_max: float
    gap: float
    kappa_sq: float
    zeta_sq: float
    gradient_sq: float
    num_agents: int

    @classmethod
    def of(cls, constants: Mapping[str, Any]) -> "Problem":
        """Return the problem of measured ``constants`` (``constants.Constants.to_json``).

        Raises ``ConfigError`` if a constant is not known without which there is no bound.
        """
        if constants["gap"] is None:
            raise ConfigError(
                "the bounds need the initial gap L(x_0) - L*, but the least loss L* is "
                f"{constants['optimum_is']}",
                "measure with loss.label_smoothing = 0, which is DPO, or search for L* with more "
                "--iterations",
            )
        if constants.get("smoothness_max") is None:
            raise ConfigError(
                "the constants were measured by an earlier version, without the smoothness of "
                "each agent",
                "delete them (a study's constants.json), so that they are measured again",
            )
        names = ("smoothness", "smoothness_max", "gap", "kappa_sq", "zeta_sq", "num_agents")
        squares = (constants[name] for name in ("gradient_sq", "kappa_sq", "zeta_sq"))
        return cls(gradient_sq=sum(squares), **{name: constants[name] for name in names})


@dataclass(frozen=True)
class Bound:
    """A bound and its parts.

    terms : initial (what R rounds of descent leave), noise (of the gradients), drift (unlike users
    moving apart), drift_noise (noise moving agents apart), participation, staleness.
    step : eta. step_limit : the largest eta for which the bound is claimed.
    """

    terms: dict[str, float]
    step: float
    step_limit: float

    @property
    def total(self) -> float:
        """The bound on the mean of ||grad L(x_bar)||^2."""
        return sum(self.terms.values())

    @property
    def dominant(self) -> str:
        """The name of the largest term."""
        return max(self.terms, key=lambda name: self.terms[name])


def federated(
    problem: Problem, eta: float, rounds: int, local_steps: int = 1, participants: int | None = None
) -> Bound:
    """Return eq. (1); participants : S, None for all n."""
    n, smooth, steps = problem.num_agents, problem.smoothness, local_steps
    own, s = problem.smoothness_max, participants or n
    drawn = (n - s) / (s * (n - 1)) if n > 1 else 0.0
    terms = {
        "initial": 2 * problem.gap / (eta * steps * rounds),
        "noise": smooth * eta * problem.zeta_sq / s,
        "drift": (own * eta) ** 2 * steps * problem.kappa_sq,
        "drift_noise": (own * eta * steps) ** 2 * problem.zeta_sq / s,
        "participation": smooth * eta * steps * problem.kappa_sq * drawn,
    }
    return Bound(terms, eta, _limit(1.0, own * steps))


def decentralized(
    problem: Problem, eta: float, rounds: int, local_steps: int = 1, rho: float = 0.0
) -> Bound:
    """Return eq. (2); rho : of one round, from ``advisor.per_round``, below 1."""
    n, own, steps, gap = problem.num_agents, problem.smoothness_max, local_steps, 1 - rho
    squared = (own * eta) ** 2
    terms = {
        "initial": 2 * problem.gap / (eta * steps * rounds),
        "noise": problem.smoothness * eta * problem.zeta_sq / n,
        "drift": _over(4 * squared * steps**2 * problem.kappa_sq, gap**2),
        "drift_noise": _over(2 * squared * steps * problem.zeta_sq, gap),
    }
    return Bound(terms, eta, _limit(gap, 2 * own * steps))


def stale(
    problem: Problem,
    eta: float,
    rounds: int,
    local_steps: int = 1,
    rho: float = 0.0,
    *,
    delay: int,
    own: float = 0.0,
) -> Bound:
    """Return eq. (3); delay : q rounds. own : w, the mean weight an agent gives to itself."""
    fresh = decentralized(problem, eta, rounds, local_steps, rho)
    slower = 1 + delay * (1 - own)
    late = 2 * (problem.smoothness_max * eta * local_steps * delay) ** 2 * problem.gradient_sq
    terms = {**fresh.terms, "initial": slower * fresh.terms["initial"]}
    terms["staleness"] = _over(late, (1 - rho) ** 2)
    return Bound(terms, eta, fresh.step_limit / slower)


def best_step(bound_at: Callable[[float], Bound]) -> Bound:
    """Return the smallest bound over all eta up to its limit.

    bound_at : the bound as a function of eta. With its terms gathered as a / eta + b eta + c eta^2
    the best eta is the positive root of 2 c eta^3 + b eta^2 - a, or the limit if that is smaller.
    """
    unit = bound_at(1.0)
    a = unit.terms["initial"]
    b = sum(v for name, v in unit.terms.items() if _POWERS.get(name) == 1)
    c = sum(v for name, v in unit.terms.items() if name not in _POWERS)
    eta = _root(a, b, c)
    eta = min(eta, unit.step_limit)
    if not np.isfinite(eta) or eta <= 0:
        # Nothing to gain, or nothing that limits the step.
        eta = unit.step_limit if np.isfinite(unit.step_limit) and unit.step_limit > 0 else 1.0
    return bound_at(eta)


def _root(a: float, b: float, c: float) -> float:
    """Return the positive root of 2 c x^3 + b x^2 - a, infinity if there is none."""
    if a <= 0 or (b <= 0 and c <= 0):
        return float("inf")
    # Newton from above: the function is convex and increasing for x > 0.
    ends = [(a / b) ** 0.5] if b > 0 else []
    ends += [(a / (2 * c)) ** (1 / 3)] if c > 0 else []
    x = min(ends)
    for _ in range(100):
        step = (2 * c * x**3 + b * x**2 - a) / (6 * c * x**2 + 2 * b * x)
        x -= step
        if abs(step) <= 1e-14 * x:
            break
    return x


def _limit(above: float, below: float) -> float:
    return above / below if below > 0 else float("inf")


def _over(above: float, below: float) -> float:
    """Return above / below, where agents that never mix drift apart without bound."""
    if above == 0:
        return 0.0
    return above / below if below > 0 else float("inf")
