"""Identity Preference Optimization.

    mean form   l = (h_w/|y_w| - h_l/|y_l| - 1/(2 beta))^2
    sum form    l = (h_w - h_l - 1/(2 beta))^2

The paper writes the sum form; TRL, on its authors' word, uses the mean over the steps of an
answer, so that the target does not depend on how long answers are.

References
----------
M. G. Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences,
arXiv:2310.12036, eq. 17 (its tau is our beta).
"""

from dataclasses import dataclass

from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import mean_over_steps, require_positive
from decdpo.losses.names import LOSSES


@dataclass(frozen=True)
class IPO:
    """``l = (h_w/|y_w| - h_l/|y_l| - 1/(2 beta))^2``, the mean form.

    beta : tau of the paper, > 0. Raises ConfigError if it is out of range.
    """

    beta: float = LOSSES["ipo"].number("beta")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Azar et al., eq. 17, of means over steps)."""
        gap = mean_over_steps(pairs.chosen_ratio, pairs.chosen_length) - mean_over_steps(
            pairs.rejected_ratio, pairs.rejected_length
        )
        return (gap - 0.5 / self.beta) ** 2


@dataclass(frozen=True)
class SummedIPO:
    """``l = (h_w - h_l - 1/(2 beta))^2``, the sum form.

    beta : tau of the paper, > 0. Raises ConfigError if it is out of range.
    """

    beta: float = LOSSES["ipo_sum"].number("beta")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Azar et al., eq. 17)."""
        return (pairs.chosen_ratio - pairs.rejected_ratio - 0.5 / self.beta) ** 2
