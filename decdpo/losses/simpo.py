"""Simple Preference Optimization: mean log-probabilities as rewards, and no reference.

    l = -log sigma(beta (log pi_w / |y_w| - log pi_l / |y_l|) - gamma)

References
----------
Y. Meng et al., SimPO, arXiv:2405.14734.
"""

from dataclasses import dataclass

from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import (
    log_sigmoid,
    mean_over_steps,
    require_between,
    require_positive,
)
from decdpo.losses.names import LOSSES


@dataclass(frozen=True)
class SimPO:
    """``l = -log sigma(beta (log pi_w / |y_w| - log pi_l / |y_l|) - gamma)``.

    beta : scale of the mean log-probability, > 0. gamma : margin the rewards should reach, >= 0.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["simpo"].number("beta")
    gamma: float = LOSSES["simpo"].number("gamma")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("gamma", self.gamma, 0.0, float("inf"))

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Meng et al.)."""
        chosen = mean_over_steps(pairs.chosen, pairs.chosen_length)
        rejected = mean_over_steps(pairs.rejected, pairs.rejected_length)
        return -log_sigmoid(self.beta * (chosen - rejected) - self.gamma)
