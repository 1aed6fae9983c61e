"""beta-DPO: DPO whose beta follows the quality of the batch.

With the gap ``M = h_w - h_l`` (nats), its batch mean and its running mean M0:

    beta = max(beta_min, beta_0 (1 + alpha (mean M - M0)))
    l    = -log sigma(beta (h_w - h_l))
    M0  <- m M0 + (1 - m) mean M

No gradient flows through beta. The loss stays pure: M0 is a ``GapMean`` that the caller keeps.
In each local step of an agent

    loss = beta_dpo.at(state)             # a PairLoss with M0 fixed
    losses = loss(pairs)
    state = beta_dpo.update(state, pairs)

so the state belongs beside the agent's parameters: its one tensor can be a view of the last value
of the message buffer (then neighbours average it as they average parameters, which is sound since
the update is linear in M0 and in the gap) and is saved as it is in a checkpoint.

Our reading where the paper and its program differ: M0 is the value before the present batch (the
paper's order), gaps are log-ratios in nats (the program; the paper has them times beta_0), and M0
begins at 0, the gap at the reference. The random filtering of outlying pairs is a matter of
sampling, not of the loss, and is not part of it.

References
----------
J. Wu et al., beta-DPO: Direct Preference Optimization with Dynamic beta, arXiv:2407.08639,
section 4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decdpo.losses.base import PairLogProbs
from decdpo.losses.constants import log_sigmoid, require_between, require_positive


@dataclass(frozen=True)
class GapMean:
    """The running statistics of beta-DPO.

    mean : (1,) M0, the running mean of h_w - h_l over batches (nats), without gradient.
    """

    mean: Tensor


@dataclass(frozen=True)
class BetaDPO:
    """The constants of beta-DPO; ``at(state)`` is the loss of one batch.

    beta : beta_0, the scale where the batch gap equals its running mean, > 0.
    alpha : relative change of beta per nat of the gap, >= 0 (0 is DPO).
    momentum : m in [0, 1), the share of the old value in the running mean.
    beta_min : beta never falls below this, > 0 and <= beta.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = 0.1
    alpha: float = 0.6
    momentum: float = 0.9
    beta_min: float = 1e-3

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("alpha", self.alpha, 0.0, float("inf"))
        require_between("momentum", self.momentum, 0.0, 1.0, below_high=True)
        require_positive("beta_min", self.beta_min)
        require_between("beta_min", self.beta_min, 0.0, self.beta)

    def init(self, like: Tensor) -> GapMean:
        """Return M0 = 0, with the type and device of ``like``."""
        return GapMean(torch.zeros(1, dtype=like.dtype, device=like.device))

    def at(self, state: GapMean) -> "DynamicDPO":
        """Return the loss of the batch that follows ``state``."""
        return DynamicDPO(self, state)

    def update(self, state: GapMean, pairs: PairLogProbs) -> GapMean:
        """Return the running mean after the batch ``pairs``; ``state`` is left as it was."""
        m = self.momentum
        return GapMean(m * state.mean + (1.0 - m) * _gap(pairs).to(state.mean.dtype))


@dataclass(frozen=True)
class DynamicDPO:
    """``l = -log sigma(beta (h_w - h_l))`` with the beta of this batch; a PairLoss.

    constants : of beta-DPO. state : the running mean before this batch.
    """

    constants: BetaDPO
    state: GapMean

    @property
    def beta(self) -> float:
        """beta_0: rewards are logged on one scale, whatever the beta of the batch."""
        return self.constants.beta

    def batch_beta(self, pairs: PairLogProbs) -> Tensor:
        """Return the 1-element beta of the batch ``pairs``, without gradient."""
        gap = _gap(pairs)
        c = self.constants
        beta = c.beta * (1.0 + c.alpha * (gap - self.state.mean.to(gap.dtype)))
        return beta.clamp(min=c.beta_min)

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        """Return the (B,) losses (Wu et al., section 4)."""
        return -log_sigmoid(self.batch_beta(pairs) * (pairs.chosen_ratio - pairs.rejected_ratio))


def _gap(pairs: PairLogProbs) -> Tensor:
    """Return the (1,) batch mean of h_w - h_l, without gradient."""
    return (pairs.chosen_ratio - pairs.rejected_ratio).detach().mean().reshape(1)
