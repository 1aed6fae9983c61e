"""What messages may reveal of an agent's pairs: epsilon, by Google's accountant of privacy.

The local steps of an agent are Gaussian mechanisms on Poisson samples of its pairs, composed by
Renyi differential privacy of orders 2 to 1,024. The package ``dp_accounting`` is the extra
``privacy``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from decdpo.errors import EnvironmentFault
from decdpo.run import Run

ORDERS = (*range(2, 65), *range(72, 257, 8), *range(320, 1025, 64))


def require_accountant() -> None:
    """Raise ``EnvironmentFault`` unless the accountant is installed."""
    try:
        import_module("dp_accounting.rdp")
    except ImportError as fault:
        raise EnvironmentFault(
            f"privacy.kind = 'dp_sgd' needs an accountant: {fault}", "pip install 'decdpo[privacy]'"
        ) from None


def epsilon(share: float, noise: float, steps: int, delta: float) -> float:
    """Return epsilon of ``steps`` local steps at ``delta``.

    share : q, the probability of a pair to be in a batch. noise : the noise multiplier.
    """
    from dp_accounting.rdp import compute_epsilon

    if not steps:
        return 0.0
    return float(compute_epsilon(ORDERS, steps * _of_one_step(share, noise), delta)[0])


@cache
def _of_one_step(share: float, noise: float) -> np.ndarray:
    """Return the Renyi divergences of one local step, one for each of ``ORDERS``."""
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS)
    accountant.compose(PoissonSampledDpEvent(share, GaussianDpEvent(noise)))
    return np.asarray(accountant.rdp)


@dataclass(frozen=True)
class Spent:
    """Counts what every agent has spent of its privacy.

    shares : q by agent. noise, delta : of the section ``[privacy]``. secret : whether noise is
    drawn by one.
    """

    shares: Mapping[int, float]
    noise: float
    delta: float
    secret: bool = False

    @property
    def warning(self) -> str:
        """What weakens the promise, empty if nothing does."""
        if self.secret:
            return ""
        return (
            "the noise is drawn by run.seed, and whoever knows that can take it away: name a file "
            "with a secret by privacy.secret"
        )

    def after(self, run: Run, rounds: int) -> tuple[float, int]:
        """Return the largest epsilon of any agent after so many rounds, and whose it is.

        A round counts as one in which every agent takes part.
        """
        cases: dict[int, list[int]] = {}
        for agent in self.shares:
            cases.setdefault(run.steps(agent, rounds).start, []).append(agent)
        found = []
        for steps, agents in cases.items():
            # An agent whose pairs are drawn more often spends more.
            worst = max(agents, key=lambda agent: (self.shares[agent], -agent))
            found.append((epsilon(self.shares[worst], self.noise, steps, self.delta), worst))
        return max(found, key=lambda pair: (pair[0], -pair[1]))

    def record(self, run: Run, rounds: int) -> dict[str, Any]:
        """Return what a record of metrics says of it."""
        return {"privacy/epsilon": self.after(run, rounds)[0]}

    def words(self, run: Run, rounds: int) -> str:
        """Return it as a sentence."""
        value, agent = self.after(run, rounds)
        known = "the secret" if self.secret else "run.seed"
        return (
            f"privacy: epsilon {value:.3g} at delta {self.delta:g} after {rounds} rounds, of one "
            f"training pair of agent {agent}; of no agent more, to those who do not know {known}"
        )
