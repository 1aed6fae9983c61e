"""R-DPO: DPO for a reward from which alpha per step of an answer is taken off.

The optimum of ``E[r - alpha |y|] - beta KL`` has ``r = beta h + alpha |y| + const``, so

    l = -log sigma(beta (h_w - h_l) + alpha (|y_w| - |y_l|))

and a longer chosen answer, whose margin length explains already, gets a smaller gradient.

References
----------
R. Park et al., Disentangling Length from Quality in Direct Preference Optimization,
arXiv:2403.19159.
"""

from dataclasses import dataclass

from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import log_sigmoid, require_between, require_positive
from decdpo.losses.dpo import dpo_margin
from decdpo.losses.names import LOSSES


@dataclass(frozen=True)
class LengthDPO:
    """``l = -log sigma(beta (h_w - h_l) + alpha (|y_w| - |y_l|))``; DPO at alpha = 0.

    beta : scale of the implicit reward, > 0. alpha : reward taken off per step, >= 0.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["rdpo_length"].number("beta")
    alpha: float = LOSSES["rdpo_length"].number("alpha")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("alpha", self.alpha, 0.0, float("inf"))

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Park et al.)."""
        z = dpo_margin(pairs, self.beta)
        longer = (pairs.chosen_length - pairs.rejected_length).to(z.dtype)
        return -log_sigmoid(z + self.alpha * longer)
