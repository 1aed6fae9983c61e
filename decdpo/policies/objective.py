"""The objective: a policy and a preference loss, joined into a gradient and its statistics.

The loss sees nothing but the (B,) log-probabilities. Its derivatives by them, the cotangents, are
all that travels back into the policy, so any loss works with any policy.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import NumericalError, PolicyError
from decdpo.losses.base import PairLogProbs, PairLoss
from decdpo.params.flat import FlatParams
from decdpo.policies.base import Policy
from decdpo.policies.encoded import EncodedShard

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

    values : (2 + len(METRICS),) float64: the number of pairs that carry weight, their total weight,
    and for each name of ``METRICS`` the weighted sum over pairs. ``zero()`` is of no pairs.

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

    @classmethod
    def zero(cls) -> "Stats":
        """Return the statistics of no pairs."""
        return cls(np.zeros(2 + len(METRICS)))

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(self.values + other.values)

    @property
    def count(self) -> int:
        """Number of pairs that carry weight."""
        return int(self.values[0])

    def to_array(self) -> np.ndarray:
        """Return a copy of the (K,) float64 sums, in an order that never changes."""
        return self.values.copy()

    @classmethod
    def from_array(cls, values: np.ndarray) -> "Stats":
        """Take the (K,) sums that ``to_array`` gave, or their sum over agents."""
        return cls(np.array(values, dtype=np.float64))

    def means(self) -> dict[str, float]:
        """Return the weighted mean of each metric; empty if no pair carries weight."""
        if not self.count:
            return {}
        return dict(zip(METRICS, (self.values[2:] / self.values[1]).tolist()))


@dataclass(frozen=True)
class Objective:
    """A policy trained by a loss: L_i(theta) = E_{D_i}[loss(log pi_theta, log pi_ref)].

    policy : the model family. loss : a function of log-probabilities.
    """

    policy: Policy
    loss: PairLoss

    def gradient(self, params: FlatParams, data: EncodedShard, rows: np.ndarray) -> Stats:
        """Overwrite ``params.grad`` (P,) with the gradient of the batch's mean loss.

        rows : (B,) shard rows. Weighted pairs count by their weight over the mean weight of the
        training pairs, so that the batch gradient is unbiased. Returns the batch's statistics.

        Raises ``NumericalError`` naming agent and rows if a loss or log-probability is not finite.
        """
        params.grad.zero_()
        # An overflow is reported with its rows, as an error: NumPy need not warn of it as well.
        with np.errstate(over="ignore", invalid="ignore"):
            forward = self.policy.forward(params, data, rows)
            losses, d_chosen, d_rejected = self._cotangents(forward.logps, data, rows)
            forward.backward(d_chosen, d_rejected)
            return self._stats(forward.logps, losses, d_chosen, d_rejected, data, rows)

    def evaluate(
        self, params: FlatParams, data: EncodedShard, rows: np.ndarray, batch_size: int = 64
    ) -> Stats:
        """Return the statistics of the pairs ``rows`` (B,) without touching ``params.grad``.

        batch_size : pairs evaluated at once; a matter of memory only. Raises as ``gradient`` does.
        """
        total = Stats.zero()
        with np.errstate(over="ignore", invalid="ignore"):
            for part in _parts(rows, batch_size):
                logps = self.policy.forward(params, data, part, need_grad=False).logps
                total += self._stats(logps, *self._cotangents(logps, data, part), data, part)
        return total

    def _cotangents(
        self, logps: PairLogProbs, data: EncodedShard, rows: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses (B,) and the derivatives of their mean by both log-probabilities."""
        with torch.enable_grad():
            chosen = logps.chosen.detach().requires_grad_()
            rejected = logps.rejected.detach().requires_grad_()
            losses = self.loss(replace(logps, chosen=chosen, rejected=rejected))
            if data.weight is None:
                mean = losses.mean()
            else:
                mean = (torch.as_tensor(data.weight[rows]).to(losses) * losses).mean()
            mean.backward()
        # A loss may ignore one of the answers; its cotangent is then zero.
        d_chosen = torch.zeros_like(losses) if chosen.grad is None else chosen.grad
        d_rejected = torch.zeros_like(losses) if rejected.grad is None else rejected.grad
        return losses.detach(), d_chosen, d_rejected

    def _stats(
        self,
        logps: PairLogProbs,
        losses: Tensor,
        d_chosen: Tensor,
        d_rejected: Tensor,
        data: EncodedShard,
        rows: np.ndarray,
    ) -> Stats:
        parts = (losses, logps.chosen, logps.rejected, logps.ref_chosen, logps.ref_rejected)
        stacked = torch.stack((*parts, d_chosen, d_rejected)).to("cpu", torch.float64).numpy()
        if not np.isfinite(stacked).all():
            raise _not_finite(stacked, data, rows)
        drift, drift_rejected = stacked[1:3] - stacked[3:5]
        margin = self.loss.beta * (drift - drift_rejected)
        slope = np.log(np.maximum(np.abs(stacked[5:]), 1e-300))
        kinks = np.array((np.sign(margin), slope[0] - slope[1], np.abs(margin) > SATURATED_MARGIN))
        count = total = float(len(rows))
        linear = stacked
        if data.weight is not None:
            weight = data.weight[rows]
            count, total = float(np.count_nonzero(weight)), float(weight.sum())
            linear, kinks = stacked * weight, kinks * weight
        # Most metrics are linear in what was stacked: summing first is one pass over the batch.
        sums = linear.sum(axis=1)
        loss, chosen, rejected, ref_chosen, ref_rejected = sums[:5].tolist()
        signs, slopes, saturated = kinks.sum(axis=1).tolist()
        reward = self.loss.beta * (chosen - ref_chosen)
        reward_rejected = self.loss.beta * (rejected - ref_rejected)
        return Stats(
            np.array(
                (
                    count,
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
                )
            )
        )


def check_start(policy: Policy, data: EncodedShard, batch_size: int = 16, batches: int = 1) -> None:
    """Check that rewards are exactly 0 where training begins: the policy is the reference.

    Evaluates the first ``batches`` batches of the shard at ``policy.initial()``.
    Raises ``PolicyError`` naming the first pair whose log-ratio is not zero.
    """
    params = FlatParams(policy.layout, policy.initial())
    rows = np.arange(min(data.num_pairs, batch_size * batches))
    for part in _parts(rows, batch_size):
        logps = policy.forward(params, data, part, need_grad=False).logps
        drift = torch.stack((logps.chosen_ratio, logps.rejected_ratio)).abs().amax(dim=0)
        wrong = torch.nonzero(~(drift == 0)).flatten().tolist()
        if wrong:
            raise PolicyError(
                f"agent {data.agent}: at step 0 the rewards must be 0, but the log-ratio of"
                f" {_name_rows(data, part[wrong[:1]])} is {drift[wrong[0]].item():.3g} nats",
                "discard the cached reference log-probabilities: they are of another reference",
            )


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _name_rows(data: EncodedShard, rows: np.ndarray) -> str:
    named = f"shard row {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
    return f"{named} (source row {', '.join(str(data.source_rows[r]) for r in rows[:8])})"


def _not_finite(stacked: np.ndarray, data: EncodedShard, rows: np.ndarray) -> NumericalError:
    names = (
        "loss",
        "log pi(chosen)",
        "log pi(rejected)",
        "log pi_ref(chosen)",
        "log pi_ref(rejected)",
        "dloss/dlog pi(chosen)",
        "dloss/dlog pi(rejected)",
    )
    bad = ~np.isfinite(stacked)
    # The log-probabilities come before the loss that is computed from them.
    first = next(i for i in (1, 2, 3, 4, 0, 5, 6) if bad[i].any())
    where = np.flatnonzero(bad[first])
    return NumericalError(
        f"agent {data.agent}: {names[first]} is {stacked[first, where[0]]} at"
        f" {_name_rows(data, rows[where])}",
        "lower the learning rate, or clip the gradient",
    )
