"""Contrastive Preference Optimization: DPO with a uniform reference, kept near the chosen answers.

    l = -log sigma(beta (log pi_w - log pi_l)) - alpha log pi_w / |y_w|

The likelihood term is the mean over the steps of each chosen answer, as TRL scales it (TRL averages
over the steps of a whole batch: the same where answers are equally long); the paper has the sum.

References
----------
H. Xu et al., Contrastive Preference Optimization, arXiv:2401.08417.
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
class CPO:
    """``l = -log sigma(beta (log pi_w - log pi_l)) - alpha log pi_w / |y_w|``; no reference.

    beta : scale of the log-probabilities, > 0. alpha : weight of the likelihood term, >= 0.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["cpo"].number("beta")
    alpha: float = LOSSES["cpo"].number("alpha")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("alpha", self.alpha, 0.0, float("inf"))

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Xu et al.)."""
        preference = -log_sigmoid(self.beta * (pairs.chosen - pairs.rejected))
        return preference - self.alpha * mean_over_steps(pairs.chosen, pairs.chosen_length)
