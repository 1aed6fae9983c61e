"""Balanced-DPO: three losses that give the chosen answer a larger share of the gradient.

In DPO the gradients on the two probabilities stand as -pi_l : pi_w (eq. 2), so the less likely
answer, mostly the rejected one, moves more. With the log-ratios h_w, h_l:

    nbDPO     l = -log sigma(beta lam h_w - beta h_l - beta (lam - 1) stop(h_w))          eq. 25
    nbDPO v2  l = -log sigma(beta lam h_w - beta h_l)                                     eq. 27
              lam = 1 + clip(log pi_w - log pi_l, low, high)                              eq. 26
    bDPO      l = -log sigma(beta lam_w h_w - beta (1 - lam_w) h_l)                       eq. 28
              lam_w = log pi_l / (log pi_w + log pi_l)                                    eq. 29

with ``high = clip`` and ``low = 0`` (asymmetric: the chosen answer never loses weight) or
``low = 1/(1 + clip) - 1`` (symmetric: lam lies in [1/(1 + clip), 1 + clip]).

Gradients through the weight: in nbDPO there is none to decide about, the derivative of the
margin with respect to lam is beta (h_w - stop(h_w)) = 0. In nbDPO v2 and bDPO the paper marks
nothing as detached, so gradients flow through the weight by default; ``constant_weight`` stops
them. At the reference h_w = h_l = 0 and both agree.

References
----------
Q. Ma et al., Gradient Imbalance in Direct Preference Optimization, eq. 2, 25-30.
"""

from dataclasses import dataclass

from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.constants import log_sigmoid, require_flag, require_positive
from decdpo.losses.names import LOSSES

CERTAIN = -1e-6
"""Log-probabilities above this count as this in eq. 29, which is 0/0 for two certain answers."""


@dataclass(frozen=True)
class NbDPO:
    """Naive balanced DPO, asymmetric (eq. 25): DPO's value, its gradient on h_w times lam.

    beta : scale of the implicit reward, > 0. clip : lam lies in [1, 1 + clip], > 0.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["nbdpo"].number("beta")
    clip: float = LOSSES["nbdpo"].number("clip")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_positive("clip", self.clip)

    @property
    def clip_low(self) -> float:
        """The lower clip of eq. 26."""
        return 0.0

    def weight(self, pairs: PairScores) -> Tensor:
        """Return the (B,) lam of eq. 26."""
        return 1.0 + (pairs.chosen - pairs.rejected).clamp(self.clip_low, self.clip)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (eq. 25), with DPO's value to the bit."""
        h_w, h_l = pairs.chosen_ratio, pairs.rejected_ratio
        # lam h_w - (lam - 1) stop(h_w) = h_w + (lam - 1) (h_w - stop(h_w)), whose last factor is 0.
        boost = (self.weight(pairs).detach() - 1.0) * (h_w - h_w.detach())
        return -log_sigmoid(self.beta * (h_w + boost - h_l))


@dataclass(frozen=True)
class SymmetricNbDPO(NbDPO):
    """Naive balanced DPO, symmetric: as NbDPO with lam in [1/(1 + clip), 1 + clip]."""

    @property
    def clip_low(self) -> float:
        """The lower clip of eq. 26."""
        return 1.0 / (1.0 + self.clip) - 1.0


@dataclass(frozen=True)
class NbDPOv2(NbDPO):
    """Naive balanced DPO v2, asymmetric (eq. 27): the weight stays in the value.

    beta, clip : as in NbDPO. constant_weight : whether lam is a constant of the gradient.

    Raises ConfigError if a constant is out of range.
    """

    constant_weight: bool = LOSSES["nbdpo_v2"].flag("constant_weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flag("constant_weight", self.constant_weight)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (eq. 27)."""
        lam = self.weight(pairs)
        lam = lam.detach() if self.constant_weight else lam
        return -log_sigmoid(self.beta * (lam * pairs.chosen_ratio - pairs.rejected_ratio))


@dataclass(frozen=True)
class SymmetricNbDPOv2(NbDPOv2):
    """Naive balanced DPO v2, symmetric: as NbDPOv2 with lam in [1/(1 + clip), 1 + clip]."""

    @property
    def clip_low(self) -> float:
        """The lower clip of eq. 26."""
        return 1.0 / (1.0 + self.clip) - 1.0


@dataclass(frozen=True)
class BDPO:
    """Balanced DPO (eq. 28): weights that sum to 1, the larger for the likelier answer.

    At the reference the gradients on the probabilities stand as
    ``-pi_l log pi_l : pi_w log pi_w`` (eq. 30).

    beta : scale of the implicit reward, > 0.
    constant_weight : whether lam_w is a constant of the gradient.

    Raises ConfigError if a constant is out of range.
    """

    beta: float = LOSSES["bdpo"].number("beta")
    constant_weight: bool = LOSSES["bdpo"].flag("constant_weight")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_flag("constant_weight", self.constant_weight)

    def weight(self, pairs: PairScores) -> Tensor:
        """Return the (B,) lam_w of eq. 29, in (0, 1); 1/2 for two equally likely answers.

        Log-probabilities above CERTAIN count as CERTAIN (our reading: the equation is silent).
        """
        chosen, rejected = pairs.chosen.clamp(max=CERTAIN), pairs.rejected.clamp(max=CERTAIN)
        return rejected / (chosen + rejected)

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (eq. 28)."""
        lam = self.weight(pairs)
        lam = lam.detach() if self.constant_weight else lam
        z = lam * pairs.chosen_ratio - (1.0 - lam) * pairs.rejected_ratio
        return -log_sigmoid(self.beta * z)
