"""beta-DPO: DPO whose beta follows the quality of the batch.

With the gap ``M = h_w - h_l`` (nats), its batch mean and its running mean M0:

    beta = max(beta_min, beta_0 (1 + alpha (mean M - M0)))
    l    = -log sigma(beta (h_w - h_l))
    M0  <- m M0 + (1 - m) mean M

No gradient flows through beta. The loss stays pure: M0 is kept by the algorithm, beside the agent's
parameters (``algorithms.wrappers.running``): neighbours average it and a checkpoint holds it.

Our reading where the paper and its program differ: M0 is the value before the present batch (the
paper's order), gaps are log-ratios in nats (the program; the paper has them times beta_0), and M0
begins at 0, the gap at the reference. The random filtering of outlying pairs is a matter of
sampling, not of the loss, and is not part of it.

References
----------
J. Wu et al., beta-DPO: Direct Preference Optimization with Dynamic beta, arXiv:2407.08639.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import log_sigmoid, require_between, require_positive
from decdpo.losses.names import LOSSES


@dataclass(frozen=True)
class BetaDPO:
    """The constants of beta-DPO, a ``RunningLoss``; ``at(mean)`` is the loss of one batch.

    beta : beta_0, the scale where the batch gap equals its running mean, > 0.
    alpha : relative change of beta per nat of the gap, >= 0 (0 is DPO).
    momentum : m in [0, 1), the share of the old value in the running mean.
    beta_min : beta never falls below this, > 0 and <= beta.

    Raises ConfigError if a constant is out of range.
    """

    couples_pairs: ClassVar[bool] = True

    beta: float = LOSSES["beta_dpo"].number("beta")
    alpha: float = LOSSES["beta_dpo"].number("alpha")
    momentum: float = LOSSES["beta_dpo"].number("momentum")
    beta_min: float = LOSSES["beta_dpo"].number("beta_min")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("alpha", self.alpha, 0.0, float("inf"))
        require_between("momentum", self.momentum, 0.0, 1.0, below_high=True)
        require_positive("beta_min", self.beta_min)
        require_between("beta_min", self.beta_min, 0.0, self.beta)

    def at(self, mean: Tensor) -> "DynamicDPO":
        """Return the loss of the batch that finds the running mean ``mean`` (1,), M0 in nats."""
        return DynamicDPO(self, mean)

    def update(self, mean: Tensor, pairs: PairScores) -> Tensor:
        """Return the running mean (1,) after the batch ``pairs``; ``mean`` is left as it was."""
        m = self.momentum
        return m * mean + (1.0 - m) * _gap(pairs).to(mean)


@dataclass(frozen=True)
class DynamicDPO:
    """``l = -log sigma(beta (h_w - h_l))`` with the beta of this batch; a PairLoss.

    constants : of beta-DPO. mean : (1,) the running mean before this batch, nats.
    """

    couples_pairs: ClassVar[bool] = True

    constants: BetaDPO
    mean: Tensor

    @property
    def beta(self) -> float:
        """beta_0: rewards are logged on one scale, whatever the beta of the batch."""
        return self.constants.beta

    def batch_beta(self, pairs: PairScores) -> Tensor:
        """Return the 1-element beta of the batch ``pairs``, without gradient."""
        gap = _gap(pairs)
        c = self.constants
        beta = c.beta * (1.0 + c.alpha * (gap - self.mean.to(gap)))
        return beta.clamp(min=c.beta_min)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Wu et al.)."""
        return -log_sigmoid(self.batch_beta(pairs) * (pairs.chosen_ratio - pairs.rejected_ratio))


def _gap(pairs: PairScores) -> Tensor:
    """Return the (1,) batch mean of h_w - h_l, without gradient."""
    return (pairs.chosen_ratio - pairs.rejected_ratio).detach().mean().reshape(1)
