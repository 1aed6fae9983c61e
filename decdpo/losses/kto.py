"""Kahneman-Tversky Optimization: each answer is good or bad by itself.

With ``h = log pi_theta(y|x) - log pi_ref(y|x)`` and a reference point z0 >= 0 through which no
gradient flows:

    desirable    l = w_D (1 - sigma(beta (h - z0)))
    undesirable  l = w_U (1 - sigma(beta (z0 - h)))

z0 estimates KL(pi_theta || pi_ref), by the mean log-ratio of answers that do not belong to the
prompt, or of those at hand, never below 0. Pairs need no second forward pass: the chosen answers
are measured against the mean log-ratio of the rejected ones of the batch, and the other way about.

References
----------
K. Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, arXiv:2402.01306.
The crossed form for pairs is that of TRL's ``kto_pair``, after the authors' report.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import require_between, require_positive
from decdpo.losses.names import LOSSES


def reference_point(ratios: Tensor) -> Tensor:
    """Return z0 = max(0, mean of the (K,) log-ratios), a 0-d tensor without gradient."""
    return ratios.detach().mean().clamp(min=0.0)


@dataclass(frozen=True)
class UnpairedKTO:
    """KTO of single answers, each marked desirable or not.

    beta : scale of the implicit reward, > 0. desirable_weight, undesirable_weight : w_D, w_U >= 0.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["kto"].number("beta")
    desirable_weight: float = LOSSES["kto"].number("desirable_weight")
    undesirable_weight: float = LOSSES["kto"].number("undesirable_weight")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("desirable_weight", self.desirable_weight, 0.0, float("inf"))
        require_between("undesirable_weight", self.undesirable_weight, 0.0, float("inf"))

    def __call__(self, ratio: Tensor, desirable: Tensor, z0: Tensor | float) -> Tensor:
        """Return the (B,) losses of answers with log-ratios (B,) (Ethayarajh et al.).

        ratio : (B,) h, in nats. desirable : (B,) bool. z0 : reference point, 0-d or (B,), nats.
        """
        gain = self.beta * (ratio - z0)
        # 1 - sigma(u) = sigma(-u), which keeps its digits where sigma(u) is near 1.
        good = self.desirable_weight * torch.sigmoid(-gain)
        bad = self.undesirable_weight * torch.sigmoid(gain)
        return torch.where(desirable, good, bad)


@dataclass(frozen=True)
class KTO:
    """KTO of pairs: the mean of the chosen answer's loss and the rejected answer's.

    beta : scale of the implicit reward, > 0. desirable_weight, undesirable_weight : w_D, w_U >= 0.

    Raises ConfigError if a constant is out of range.
    """

    couples_pairs: ClassVar[bool] = True

    beta: float = LOSSES["kto"].number("beta")
    desirable_weight: float = LOSSES["kto"].number("desirable_weight")
    undesirable_weight: float = LOSSES["kto"].number("undesirable_weight")

    def __post_init__(self) -> None:
        self._unpaired()

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses; the reference points are means over this batch."""
        h_w, h_l = pairs.chosen_ratio, pairs.rejected_ratio
        good = torch.ones_like(h_w, dtype=torch.bool)
        answer = self._unpaired()
        chosen = answer(h_w, good, reference_point(h_l))
        rejected = answer(h_l, ~good, reference_point(h_w))
        return 0.5 * (chosen + rejected)

    def _unpaired(self) -> UnpairedKTO:
        return UnpairedKTO(self.beta, self.desirable_weight, self.undesirable_weight)
