"""Hinge losses: of the implicit rewards, and of the log-probabilities themselves (SLiC).

    hinge    l = max(0, 1 - beta (h_w - h_l))
    SLiC-HF  l = max(0, 1 - beta (log pi_w - log pi_l)) - alpha log pi_w / |y_w|

SLiC's margin delta is 1/beta here, with the loss scaled by beta; its regulariser is the mean
negative log-likelihood of the chosen answer, where the source has the log-likelihood of a target
of supervised training.
At a hinge's corner the gradient is 0, as for answers beyond it.

References
----------
Y. Zhao et al., SLiC-HF, arXiv:2305.10425.
T. Liu et al., Statistical Rejection Sampling Improves Preference Optimization, arXiv:2309.06657
(hinge-norm, the hinge loss of normalised likelihoods).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import mean_over_steps, require_between, require_positive
from decdpo.losses.dpo import dpo_margin
from decdpo.losses.names import LOSSES


@dataclass(frozen=True)
class Hinge:
    """``l = max(0, 1 - beta (h_w - h_l))``.

    beta : scale of the implicit reward, > 0. Raises ConfigError if it is out of range.
    """

    beta: float = LOSSES["hinge"].number("beta")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Liu et al., hinge-norm)."""
        return torch.relu(1.0 - dpo_margin(pairs, self.beta))


@dataclass(frozen=True)
class SLiC:
    """``l = max(0, 1 - beta (log pi_w - log pi_l)) - alpha log pi_w / |y_w|``; no reference.

    beta : scale of the margin, > 0. alpha : weight of the likelihood term, >= 0.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["slic"].number("beta")
    alpha: float = LOSSES["slic"].number("alpha")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("alpha", self.alpha, 0.0, float("inf"))

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Zhao et al.)."""
        hinge = torch.relu(1.0 - self.beta * (pairs.chosen - pairs.rejected))
        return hinge - self.alpha * mean_over_steps(pairs.chosen, pairs.chosen_length)
