"""Direct Preference Optimization, and its two answers to noisy labels.

With ``z = beta (h_w - h_l)``, the margin of the implicit rewards, and ``eps`` the probability that
a label is flipped:

    DPO, cDPO   l = -(1 - eps) log sigma(z) - eps log sigma(-z)
    rDPO        l = (-(1 - eps) log sigma(z) + eps log sigma(-z)) / (1 - 2 eps)

References
----------
R. Rafailov et al., Direct Preference Optimization, arXiv:2305.18290, eq. 7.
E. Mitchell, A note on DPO with noisy preferences & relationship to IPO (2023), eq. 3 (cDPO).
S. Ray Chowdhury et al., Provably Robust DPO, arXiv:2403.00409 (rDPO).
"""

from dataclasses import dataclass

from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import log_sigmoid, require_between, require_positive
from decdpo.losses.names import LOSSES


def dpo_margin(pairs: PairScores, beta: float) -> Tensor:
    """Return the (B,) margins z = beta (h_w - h_l) of the implicit rewards."""
    return beta * (pairs.chosen_ratio - pairs.rejected_ratio)


@dataclass(frozen=True)
class DPO:
    """``l = -(1 - eps) log sigma(z) - eps log sigma(-z)``; DPO at eps = 0, cDPO above it.

    beta : scale of the implicit reward, > 0.
    label_smoothing : eps in [0, 0.5), the probability that a label is flipped.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["dpo"].number("beta")
    label_smoothing: float = LOSSES["dpo"].number("label_smoothing")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("label_smoothing", self.label_smoothing, 0.0, 0.5, below_high=True)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Rafailov et al., eq. 7; Mitchell, eq. 3)."""
        z = dpo_margin(pairs, self.beta)
        eps = self.label_smoothing
        # -log sigma(-z) = z - log sigma(z): one logarithm, and exactly DPO at eps = 0.
        return eps * z - log_sigmoid(z)


@dataclass(frozen=True)
class RobustDPO:
    """``l = (-(1 - eps) log sigma(z) + eps log sigma(-z)) / (1 - 2 eps)``.

    Its expectation under labels flipped with probability eps is the DPO loss of the clean labels.

    beta : scale of the implicit reward, > 0.
    label_smoothing : eps in [0, 0.5), the probability that a label is flipped.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["robust"].number("beta")
    label_smoothing: float = LOSSES["robust"].number("label_smoothing")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("label_smoothing", self.label_smoothing, 0.0, 0.5, below_high=True)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses, possibly negative (Ray Chowdhury et al.)."""
        z = dpo_margin(pairs, self.beta)
        eps = self.label_smoothing
        # log sigma(-z) = log sigma(z) - z
        return -log_sigmoid(z) - eps / (1.0 - 2.0 * eps) * z
