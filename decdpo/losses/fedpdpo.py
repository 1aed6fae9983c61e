"""Personalised DPO: the implicit reward of a policy beside the explicit one of a reward head.

With ``z = beta (h_w - h_l)``, the margin of the implicit rewards, and ``e = r_w - r_l``, that of
the explicit ones, which a head of the agent's own gives the two answers:

    l = -log sigma(z + explicit_weight e) - explicit_loss log sigma(e)

The combined margin is what the model is trained, and judged, by; the second term is the explicit
head's own, so that it ranks answers by itself. A policy without a reward head has e = 0 and no
second term: the loss is then DPO.

The source (FedPDPO, arXiv:2603.19741) is known to us by its abstract, which names the parts, not
the formula. How the margins are joined, and that both terms take the logistic loss, is our reading.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from decdpo.losses.base import Metric, PairScores
from decdpo.losses.constants import log_sigmoid, require_between, require_positive
from decdpo.losses.dpo import dpo_margin
from decdpo.losses.names import LOSSES


@dataclass(frozen=True)
class RewardedScores(PairScores):
    """Pair scores with the explicit rewards (B,) of the chosen and of the rejected answers."""

    LEAVES = (*PairScores.LEAVES, "reward_chosen", "reward_rejected")

    reward_chosen: Tensor | None = None
    reward_rejected: Tensor | None = None


def explicit_margin(pairs: PairScores) -> Tensor | None:
    """Return the (B,) margins e of the explicit rewards, None where there are none."""
    if not isinstance(pairs, RewardedScores):
        return None
    if pairs.reward_chosen is None or pairs.reward_rejected is None:
        return None
    return pairs.reward_chosen - pairs.reward_rejected


@dataclass(frozen=True)
class FedPDPO:
    """``l = -log sigma(z + explicit_weight e) - explicit_loss log sigma(e)``.

    beta : scale of the implicit reward, > 0. explicit_weight : of the explicit margin in the
    combined one, >= 0. explicit_loss : weight of the explicit head's own loss, >= 0.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["fedpdpo"].number("beta")
    explicit_weight: float = LOSSES["fedpdpo"].number("explicit_weight")
    explicit_loss: float = LOSSES["fedpdpo"].number("explicit_loss")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("explicit_weight", self.explicit_weight, 0.0, float("inf"))
        require_between("explicit_loss", self.explicit_loss, 0.0, float("inf"))

    def combined_margin(self, pairs: PairScores) -> Tensor:
        """Return the (B,) margins z + explicit_weight e."""
        z, e = dpo_margin(pairs, self.beta), explicit_margin(pairs)
        return z if e is None else z + self.explicit_weight * e

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses."""
        loss, e = -log_sigmoid(self.combined_margin(pairs)), explicit_margin(pairs)
        return loss if e is None else loss - self.explicit_loss * log_sigmoid(e)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Margins and accuracies of the explicit rewards, and of both together."""

        def explicit(pairs: PairScores) -> Tensor:
            e = explicit_margin(pairs)
            return torch.zeros_like(pairs.chosen) if e is None else e

        return {
            "explicit/margins": explicit,
            "explicit/accuracies": _accuracy(explicit),
            "combined/margins": self.combined_margin,
            "combined/accuracies": _accuracy(self.combined_margin),
        }


def _accuracy(margin: Metric) -> Callable[[PairScores], Tensor]:
    """Return the metric that is 1 for a positive margin, 0 for a negative one, half for a tie."""
    return lambda pairs: 0.5 + 0.5 * margin(pairs).sign()
