"""What a preference loss sees and returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

Leaves = Mapping[str, Tensor]
"""One (B,) tensor for every score that a loss is differentiated by, by the name of its field."""

Metric = Callable[["PairScores"], Tensor]
"""Maps the scores of B pairs to a quantity (B,) whose weighted mean is recorded."""


@dataclass(frozen=True)
class PairScores:
    """What a policy says of a batch of B pairs; log-probabilities are summed over the steps (nats).

    chosen, rejected : (B,) log pi_theta(y_w|x) and log pi_theta(y_l|x).
    ref_chosen, ref_rejected : (B,) the same under the frozen reference.
    chosen_length, rejected_length : (B,) number of steps (tokens) of each answer.
    score_gap : (B,) score of the chosen minus the rejected answer, or None if the data have none.

    LEAVES names the fields that a loss is differentiated by. A policy that scores more than the
    log-probabilities makes a subclass with further fields and LEAVES. A field may be None where
    there is no such score.
    """

    LEAVES: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    score_gap: Tensor | None = None

    def leaves(self) -> dict[str, Tensor]:
        """Return the (B,) leaves that are there, in the order of ``LEAVES``."""
        named = ((name, getattr(self, name)) for name in self.LEAVES)
        return {name: value for name, value in named if value is not None}

    @property
    def chosen_ratio(self) -> Tensor:
        """(B,) h_w = log pi_theta(y_w|x) - log pi_ref(y_w|x)."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """(B,) h_l = log pi_theta(y_l|x) - log pi_ref(y_l|x)."""
        return self.rejected - self.ref_rejected


class PairLoss(Protocol):
    """A loss of preference pairs; an instance is one frozen choice of its constants.

    beta : the scale that turns log-ratios into rewards (nats to reward units).

    The loss of a pair depends on that pair alone, unless the class says ``couples_pairs = True``.
    A class may name quantities of its own to be recorded: ``metrics``, a mapping of name to
    ``Metric``.
    """

    @property
    def beta(self) -> float: ...

    def __call__(self, pairs: PairScores) -> Tensor:
        """Return the (B,) losses, differentiable in the leaves of ``pairs``."""
        ...


@runtime_checkable
class RunningLoss(Protocol):
    """A loss with a running statistic (1,) of the batches so far, 0 before the first.

    beta : the scale that turns log-ratios into rewards (nats to reward units).
    """

    @property
    def beta(self) -> float: ...

    def at(self, running: Tensor) -> PairLoss:
        """Return the loss of the batch that finds the statistic ``running`` (1,)."""
        ...

    def update(self, running: Tensor, pairs: PairScores) -> Tensor:
        """Return the statistic (1,) after the batch ``pairs``; ``running`` is left as it was."""
        ...


def couples_pairs(loss: PairLoss | RunningLoss) -> bool:
    """Say whether the loss of a pair depends on the other pairs of its batch."""
    return getattr(loss, "couples_pairs", False)
