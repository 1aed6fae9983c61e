"""What is measured of every batch of pairs, whatever the policy and the loss."""

from dataclasses import dataclass
from math import log

import numpy as np

SATURATED_MARGIN = log((1 + 0.96**0.5) / (1 - 0.96**0.5))
"""4.585: beyond this reward margin sigma' < 0.01, so DPO hardly learns from the pair any more."""

METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "drift/chosen",
    "imbalance/log_ratio",
    "saturated",
)


@dataclass(frozen=True)
class Stats:
    """Sums over pairs that add up across batches, agents and ranks.

    values : (2 + K,) float64: the number of pairs that carry weight, their total weight, and for
    each of the K ``names`` the weighted sum over pairs. ``zero()`` is of no pairs.
    names : ``METRICS``, then what a policy or a loss adds of its own.

    ======================== =====================================================================
    loss                     the preference loss
    rewards/chosen           beta h_w, with h = log pi_theta(y|x) - log pi_ref(y|x); /rejected: h_l
    rewards/margins          beta (h_w - h_l)
    rewards/accuracies       share of pairs with a positive margin; a tie counts half
    logps/chosen, /rejected  log pi_theta(y|x), summed over the answer (nats)
    drift/chosen             h_w: how far the chosen answers' log-probability moved (nats)
    imbalance/log_ratio      ln |dL/dpi_w| - ln |dL/dpi_l|, the gradient imbalance of Balanced-DPO
                             eq. 2 in logs; log pi_l - log pi_w for DPO. Positive: the gradient
                             leans to the chosen answer. A vanished cotangent counts as 1e-300.
    saturated                share of pairs with sigma'(margin) < 0.01, that is |margin| > 4.585
    ======================== =====================================================================
    """

    values: np.ndarray
    names: tuple[str, ...] = METRICS

    @classmethod
    def zero(cls, names: tuple[str, ...] = METRICS) -> "Stats":
        """Return the statistics of no pairs."""
        return cls(np.zeros(2 + len(names)), names)

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(self.values + other.values, self.names)

    @property
    def count(self) -> int:
        """Number of pairs that carry weight."""
        return int(self.values[0])

    def means(self) -> dict[str, float]:
        """Return the weighted mean of each metric; empty if no pair carries weight."""
        if not self.count:
            return {}
        return dict(zip(self.names, (self.values[2:] / self.values[1]).tolist()))


def summarize(
    pairs: np.ndarray,
    starts: np.ndarray,
    weight: np.ndarray | None,
    beta: float,
    own: np.ndarray,
) -> np.ndarray:
    """Return the statistics of each of A batches that lie end to end, N pairs in all.

    pairs : (7, N) float64, one row each for the loss, log pi(y_w), log pi(y_l), log pi_ref(y_w),
    log pi_ref(y_l), dL/dlog pi(y_w) and dL/dlog pi(y_l). starts : (A,) where each batch begins;
    none is empty. weight : (N,) of the pairs, None where all count alike. beta : of the rewards.
    own : (K, N) what policy and loss measure beyond ``METRICS``.

    Returns (A, 2 + len(METRICS) + K), a row for the ``values`` of each batch's ``Stats``. A batch
    is summed alone: its bits do not depend on the others.
    """
    drift, drift_rejected = pairs[1:3] - pairs[3:5]
    margin = beta * (drift - drift_rejected)
    slope = np.log(np.maximum(np.abs(pairs[5:]), 1e-300))
    kinks = np.array((np.sign(margin), slope[0] - slope[1], np.abs(margin) > SATURATED_MARGIN))
    counts = total = np.diff(starts, append=pairs.shape[1]).astype(np.float64)
    if weight is not None:
        counts = np.add.reduceat((weight != 0).astype(np.float64), starts)
        total = np.add.reduceat(weight, starts)
        pairs, kinks, own = pairs * weight, kinks * weight, own * weight
    # Most metrics are linear in what is given: summing first is one pass over the pairs.
    loss, chosen, rejected, ref_chosen, ref_rejected = np.add.reduceat(pairs[:5], starts, axis=1)
    signs, slopes, saturated = np.add.reduceat(kinks, starts, axis=1)
    reward = beta * (chosen - ref_chosen)
    reward_rejected = beta * (rejected - ref_rejected)
    return np.stack(
        (
            counts,
            total,
            loss,
            reward,
            reward_rejected,
            reward - reward_rejected,
            0.5 * (total + signs),
            chosen,
            rejected,
            chosen - ref_chosen,
            slopes + rejected - chosen,
            saturated,
            *np.add.reduceat(own, starts, axis=1),
        ),
        axis=1,
    )
