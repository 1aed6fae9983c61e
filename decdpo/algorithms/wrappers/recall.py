"""Agents that keep what they last sent, so that a resumed run can deliver old messages again.

Where messages may be late, what agents receive depends on messages of earlier rounds. These
are part of the state of a run, and a checkpoint has to hold them. Each agent keeps its own: q
vectors, where those of all its neighbours would be q times its degree. A resumed exchange asks for
them (``StaleExchange.recall``).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decdpo.algorithms.base import Algorithm, Needs
from decdpo.algorithms.wrappers.within import extended
from decdpo.messages import Inbox


@dataclass(frozen=True)
class Recalling:
    """The algorithm ``inner``, whose agents keep their messages of the last ``depth`` >= 1 rounds.

    The state is ``inner``'s with two more fields. told : (depth, M), the message of round t in row
    t mod depth. rounds_told : how many rounds there have been.
    """

    inner: Algorithm
    num_shared: int
    depth: int

    @property
    def needs(self) -> Needs:
        """What ``inner`` needs."""
        return self.inner.needs

    def init(self, x: Tensor) -> Any:
        """Return the state of an agent that starts at ``x`` (P,)."""
        state = self.inner.init(x)
        told = x.new_zeros(self.depth, self.inner.message_size(self.num_shared))
        return extended(state, "Recalling", told=told, rounds_told=0)

    def message_size(self, num_shared: int) -> int:
        """Return M of ``inner``."""
        return self.inner.message_size(num_shared)

    def local_step(self, state: Any, grad: Tensor, lr: float) -> None:
        """Take ``inner``'s local step."""
        self.inner.local_step(state, grad, lr)

    def message(self, state: Any) -> Tensor:
        """Return ``inner``'s message (M,), and keep it."""
        row: Tensor = state.told[state.rounds_told % self.depth]
        return row.copy_(self.inner.message(state))

    def mix(self, state: Any, inbox: Inbox) -> None:
        """Mix as ``inner`` does."""
        self.inner.mix(state, inbox)
        state.rounds_told += 1

    def restart(self, state: Any, rounds: int, mean: Tensor | None) -> None:
        """Restart as ``inner`` does."""
        self.inner.restart(state, rounds, mean)


def told_since(state: Any) -> dict[int, Tensor]:
    """Return the kept messages (M,) of a state by round, ascending."""
    told, now = state.told, state.rounds_told
    return {t: told[t % len(told)] for t in range(max(0, now - len(told)), now)}
