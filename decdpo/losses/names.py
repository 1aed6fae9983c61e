"""The names of the losses, and the options and defaults of each one: the only place that has them.

The sections ``[loss]`` are made from it, and the classes take their defaults from it. It imports
nothing heavy.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossOption:
    """A constant of a loss: its key, its default, and what it means in one line."""

    name: str
    default: float | bool
    doc: str


@dataclass(frozen=True)
class LossInfo:
    """What a configuration needs to know about a loss.

    doc : the formula in one line, with z = beta (h_w - h_l).
    options : the constants it uses; any other key would be ignored, and is therefore refused.
    needs_score : whether the shards must hold a score of each answer.
    has_state : whether it has a running statistic of the batches, which agents then share.
    """

    doc: str
    options: tuple[LossOption, ...]
    needs_score: bool = False
    has_state: bool = False

    def number(self, name: str) -> float:
        """Return the default of the option ``name``, a number. Raises ``KeyError`` without one."""
        return float(self._defaults()[name])

    def flag(self, name: str) -> bool:
        """Return the default of the option ``name``, true or false. Raises ``KeyError``."""
        return bool(self._defaults()[name])

    def _defaults(self) -> dict[str, float | bool]:
        return {option.name: option.default for option in self.options}


def _beta(default: float = 0.1, doc: str = "scale of the implicit reward") -> LossOption:
    return LossOption("beta", default, doc)


_CLIP = LossOption("clip", 0.5, "largest gradient weight of the chosen answer is 1 + clip")
_CONSTANT_WEIGHT = LossOption(
    "constant_weight", False, "take the weight as a constant: no gradient flows through it"
)

LOSSES: dict[str, LossInfo] = {
    "dpo": LossInfo(
        "-(1 - eps) log sigma(z) - eps log sigma(-z): DPO, with label smoothing cDPO",
        (
            _beta(),
            LossOption("label_smoothing", 0.0, "eps: probability that a label is flipped"),
        ),
    ),
    "robust": LossInfo(
        "rDPO: unbiased for the DPO loss of the clean labels when labels are flipped",
        (
            _beta(),
            LossOption("label_smoothing", 0.1, "eps: probability that a label is flipped"),
        ),
    ),
    "ipo": LossInfo(
        "(h_w/|y_w| - h_l/|y_l| - 1/(2 beta))^2: IPO of log-ratios averaged over the steps",
        (_beta(doc="tau of the paper: strength of the regularisation"),),
    ),
    "ipo_sum": LossInfo(
        "(h_w - h_l - 1/(2 beta))^2: IPO of log-ratios summed over the steps",
        (_beta(doc="tau of the paper: strength of the regularisation"),),
    ),
    "hinge": LossInfo("max(0, 1 - z): hinge loss of the implicit rewards", (_beta(),)),
    "slic": LossInfo(
        "max(0, 1 - beta log(pi_w/pi_l)) - alpha log(pi_w)/|y_w|: SLiC-HF, without reference",
        (
            _beta(1.0, "scale of the log-probability margin, the reciprocal of the paper's delta"),
            LossOption("alpha", 0.1, "weight of the likelihood of the chosen answer"),
        ),
    ),
    "simpo": LossInfo(
        "-log sigma(beta (log pi_w/|y_w| - log pi_l/|y_l|) - gamma): SimPO, without reference",
        (
            _beta(2.0, "scale of the mean log-probability"),
            LossOption("gamma", 1.0, "margin that the rewards should reach"),
        ),
    ),
    "odpo": LossInfo(
        "-log sigma(z - alpha (s_w - s_l)): DPO with an offset by the score gap",
        (_beta(), LossOption("alpha", 1.0, "offset per unit of the score gap")),
        needs_score=True,
    ),
    "odpo_log": LossInfo(
        "-log sigma(z - alpha log(s_w - s_l)): DPO with an offset by the log of the score gap",
        (_beta(), LossOption("alpha", 1.0, "offset per unit of the log of the score gap")),
        needs_score=True,
    ),
    "rdpo_length": LossInfo(
        "-log sigma(z + alpha (|y_w| - |y_l|)): R-DPO, DPO that does not reward length",
        (_beta(), LossOption("alpha", 0.01, "reward taken off per step of an answer")),
    ),
    "beta_dpo": LossInfo(
        "beta-DPO: DPO whose beta follows the gap of the batch relative to its running mean",
        (
            _beta(doc="beta_0: scale at the mean gap"),
            LossOption("alpha", 0.6, "relative change of beta per nat of the gap"),
            LossOption("momentum", 0.9, "share of the old value in the running mean of the gap"),
            LossOption("beta_min", 1e-3, "beta never falls below this"),
        ),
        has_state=True,
    ),
    "kto": LossInfo(
        "KTO on pairs: value of each answer against the mean log-ratio of the other answers",
        (
            _beta(),
            LossOption("desirable_weight", 1.0, "weight of the chosen answers"),
            LossOption("undesirable_weight", 1.0, "weight of the rejected answers"),
        ),
    ),
    "cpo": LossInfo(
        "-log sigma(beta log(pi_w/pi_l)) - alpha log(pi_w)/|y_w|: CPO, without reference",
        (
            _beta(),
            LossOption("alpha", 1.0, "weight of the likelihood of the chosen answer"),
        ),
    ),
    "fedpdpo": LossInfo(
        "-log sigma(z + explicit_weight e) - explicit_loss log sigma(e): FedPDPO, e the margin of "
        "the explicit rewards of policy.personal.reward",
        (
            _beta(),
            LossOption("explicit_weight", 1.0, "weight of the explicit margin beside z"),
            LossOption("explicit_loss", 1.0, "weight of the loss of the explicit rewards alone"),
        ),
    ),
    "nbdpo": LossInfo(
        "naive balanced DPO, asymmetric: DPO's value, gradient on h_w times lam in [1, 1 + clip]",
        (_beta(), _CLIP),
    ),
    "nbdpo_symmetric": LossInfo(
        "naive balanced DPO, symmetric: lam in [1/(1 + clip), 1 + clip]",
        (_beta(), _CLIP),
    ),
    "nbdpo_v2": LossInfo(
        "-log sigma(beta (lam h_w - h_l)): naive balanced DPO v2, asymmetric",
        (_beta(), _CLIP, _CONSTANT_WEIGHT),
    ),
    "nbdpo_v2_symmetric": LossInfo(
        "naive balanced DPO v2, symmetric: lam in [1/(1 + clip), 1 + clip]",
        (_beta(), _CLIP, _CONSTANT_WEIGHT),
    ),
    "bdpo": LossInfo(
        "-log sigma(beta lam_w h_w - beta (1 - lam_w) h_l): balanced DPO",
        (_beta(), _CONSTANT_WEIGHT),
    ),
}
"""Every value of the key ``kind`` of a loss."""
