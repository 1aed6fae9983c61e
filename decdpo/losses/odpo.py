"""DPO with an offset: a pair must be apart by as much as its scores say.

    linear   l = -log sigma(z - alpha (s_w - s_l))
    log      l = -log sigma(z - alpha log(s_w - s_l))

with ``z = beta (h_w - h_l)`` and s the score of an answer. The paper leaves the increasing function
of the score gap open and uses the logarithm; the linear form is DPO at a gap of 0.

References
----------
A. Amini et al., Direct Preference Optimization with an Offset, arXiv:2402.10571.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decdpo.errors import DataError
from decdpo.losses.base import PairScores
from decdpo.losses.constants import log_sigmoid, require_between, require_positive
from decdpo.losses.dpo import dpo_margin
from decdpo.losses.names import LOSSES


@dataclass(frozen=True)
class ODPO:
    """``l = -log sigma(z - alpha (s_w - s_l))``; DPO where both answers score the same.

    beta : scale of the implicit reward, > 0. alpha : offset per unit of the score gap, >= 0.

    Raises ConfigError if a constant is out of range; DataError if the pairs have no finite scores.
    """

    beta: float = LOSSES["odpo"].number("beta")
    alpha: float = LOSSES["odpo"].number("alpha")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("alpha", self.alpha, 0.0, float("inf"))

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Amini et al.; a negative gap lowers what is asked of a pair)."""
        z = dpo_margin(pairs, self.beta)
        return -log_sigmoid(z - self.alpha * _score_gap(pairs).to(z.dtype))


@dataclass(frozen=True)
class LogODPO:
    """``l = -log sigma(z - alpha log(s_w - s_l))``, for scores where the chosen is above.

    beta : scale of the implicit reward, > 0. alpha : offset per unit of the log gap, >= 0.

    Raises ConfigError if a constant is out of range; DataError if the pairs have no finite scores
    or the chosen answer does not score above the rejected one.
    """

    beta: float = LOSSES["odpo_log"].number("beta")
    alpha: float = LOSSES["odpo_log"].number("alpha")

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require_between("alpha", self.alpha, 0.0, float("inf"))

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses (Amini et al.)."""
        gap = _score_gap(pairs)
        low = torch.nonzero(gap <= 0).flatten().tolist()
        if low:
            raise DataError(
                f"pair {low[0]} of the batch has a score gap of {float(gap[low[0]]):g},"
                f" and {len(low)} of {len(gap)} pairs a gap of 0 or less: it has no logarithm",
                'Keep pairs whose chosen answer scores higher, or set loss.kind = "odpo".',
            )
        z = dpo_margin(pairs, self.beta)
        return -log_sigmoid(z - self.alpha * gap.to(z.dtype).log())


def _score_gap(pairs: PairScores) -> Tensor:
    """Return the (B,) score gaps, or raise DataError if they are missing or not finite."""
    if pairs.score_gap is None:
        raise DataError(
            "this loss needs the score of each answer, and the shards hold none",
            "Shard a source with score columns, or choose another loss.kind.",
        )
    if not bool(torch.isfinite(pairs.score_gap).all()):
        bad = int(torch.nonzero(~torch.isfinite(pairs.score_gap))[0])
        raise DataError(
            f"pair {bad} of the batch has a score gap of {float(pairs.score_gap[bad])}",
            "Drop the pairs without finite scores when sharding.",
        )
    return pairs.score_gap
