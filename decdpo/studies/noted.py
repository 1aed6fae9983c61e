"""Local batch gradients as they pass: the gap of Distributed DPO's public program."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from decdpo.algorithms.base import Algorithm, Needs
from decdpo.messages import Inbox
from decdpo.run import Run

ROUNDS = 5
"""Over how many of the last rounds that program takes its mean."""


class Noted(Algorithm[Any]):
    """An algorithm that notes min(1, ||g||)^2 of every batch gradient g before its local step.

    squares : one for each local step of an agent, in order.
    """

    def __init__(self, algorithm: Algorithm[Any]) -> None:
        self._algorithm = algorithm
        self.squares: list[float] = []

    @property
    def needs(self) -> Needs:
        """What the algorithm itself needs."""
        return self._algorithm.needs

    def init(self, x: Tensor) -> Any:
        """Return the algorithm's own state."""
        return self._algorithm.init(x)

    def message_size(self, num_shared: int) -> int:
        """Return the algorithm's own M."""
        return self._algorithm.message_size(num_shared)

    def local_step(self, state: Any, grad: Tensor, lr: float) -> None:
        """Note ``grad`` (P,), then take the algorithm's step with it."""
        self.squares.append(min(1.0, float(grad.dot(grad))))
        self._algorithm.local_step(state, grad, lr)

    def message(self, state: Any) -> Tensor:
        """Return the algorithm's own message (M,)."""
        return self._algorithm.message(state)

    def mix(self, state: Any, inbox: Inbox) -> None:
        """Mix as the algorithm does."""
        self._algorithm.mix(state, inbox)

    def restart(self, state: Any, rounds: int, mean: Tensor | None) -> None:
        """Restart as the algorithm does."""
        self._algorithm.restart(state, rounds, mean)


def clipped_gradient_sq(run: Run, squares: Sequence[float]) -> float:
    """Return the mean of ``squares`` over the last rounds of a run of all its agents.

    This is the mean over participants, local steps and rounds of the squared norm of gradients
    clipped to norm 1, each of one batch at the model of one participant.
    """
    last = range(max(run.num_rounds - ROUNDS, 0), run.num_rounds)
    active = sum(run.schedule.mixing(t).row(a.id).active for t in last for a in run.agents)
    kept = squares[len(squares) - active * run.local_steps :]
    return sum(kept) / len(kept)
