"""What to log about a batch of pairs, whatever the loss.

References
----------
Q. Ma et al., Gradient Imbalance in Direct Preference Optimization, eq. 2.
"""

import torch
from torch import Tensor

from decdpo.losses.base import PairLogProbs
from decdpo.losses.dpo import dpo_margin


def imbalance_log_ratio(pairs: PairLogProbs) -> Tensor:
    """Return the (B,) logs of DPO's gradient-imbalance ratio, without gradient.

    ``log |dL/dpi_w| - log |dL/dpi_l| = log pi_l - log pi_w`` (eq. 2), nats, of whole answers (sums
    over their steps). Below 0, DPO moves the probability of the rejected answer more than
    that of the chosen one: the paper's negative imbalance. 0 is a balanced pair.
    """
    return (pairs.rejected - pairs.chosen).detach()


def loss_imbalance_log_ratio(pairs: PairLogProbs, d_chosen: Tensor, d_rejected: Tensor) -> Tensor:
    """Return the (B,) logs of the gradient-imbalance ratio of any loss, without gradient.

    ``d_chosen`` and ``d_rejected`` are the (B,) derivatives of the loss by log pi_w and log pi_l;
    by the chain rule ``|dL/dpi| = |dL/dlog pi| / pi``. For DPO it equals ``imbalance_log_ratio``.
    A derivative of 0 counts as the smallest normal number of its type, so the log stays finite.
    """
    tiny = torch.finfo(d_chosen.dtype).tiny
    chosen = d_chosen.detach().abs().clamp(min=tiny).log()
    rejected = d_rejected.detach().abs().clamp(min=tiny).log()
    return chosen - rejected + imbalance_log_ratio(pairs)


def chosen_drift(pairs: PairLogProbs) -> Tensor:
    """Return the (B,) changes log pi_theta(y_w|x) - log pi_ref(y_w|x), nats, without gradient.

    Below 0, the chosen answer has become less likely than it was, though it may still have gained
    on the rejected one.
    """
    return pairs.chosen_ratio.detach()


def saturated(pairs: PairLogProbs, beta: float, threshold: float = 0.01) -> Tensor:
    """Return the (B,) bools of pairs that hardly teach any more: sigma(-z) < ``threshold``.

    ``sigma(-z)`` with ``z = beta (h_w - h_l)`` is the factor of DPO's gradient, 1/2 at the start.
    """
    return torch.sigmoid(-dpo_margin(pairs, beta).detach()) < threshold
