"""Centralized DPO: one step per round along the gradient averaged over all agents.

    x <- x - eta (1/n) sum_i g_i(x)

Every agent holds the same x and sends its gradient by the shared parameters; the mean comes back
as the one message of the round (through a ``ServerExchange``). The baseline against which the
decentralized methods are read: what pooling the data would give.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.messages import Inbox
from decdpo.params.optim import Optimizer, OptimState


@dataclass
class CentralizedState:
    """x : (P,) the common parameters. grad : (P,) this round's own gradient. lr : its step size."""

    x: Tensor
    optim: OptimState
    grad: Tensor
    lr: float = 0.0


@dataclass(frozen=True)
class Centralized:
    """Gradient averaging; ``optimizer`` steps along the mean, identically on every agent.

    num_shared : the leading values that are shared, None for all. Personal ones follow the agent's
    own gradient.

    The loss of an agent is refused: the mean over the survivors is the gradient of another
    objective.
    """

    needs: ClassVar[Needs] = Needs(
        meets="server",
        against_products="its server adds up gradients by A and B",
        on_loss="refuses",
    )

    optimizer: Optimizer
    num_shared: int | None = None

    def init(self, x: Tensor) -> CentralizedState:
        """Return the state of an agent that starts at ``x`` (P,)."""
        return CentralizedState(x, self.optimizer.init(x), x.new_zeros(x.shape))

    def message_size(self, num_shared: int) -> int:
        """Return M: one gradient."""
        return num_shared

    def local_step(self, state: CentralizedState, grad: Tensor, lr: float) -> None:
        """Keep g_i and its step size until the mean is known."""
        state.grad.copy_(grad)
        state.lr = lr

    def message(self, state: CentralizedState) -> Tensor:
        """Return g_i, the shared part (M,)."""
        return state.grad[: self.num_shared]

    def mix(self, state: CentralizedState, inbox: Inbox) -> None:
        """x <- x - eta mean_i g_i."""
        inbox.settle()
        (message,) = inbox.messages
        state.grad[: self.num_shared].copy_(message.body)
        self.optimizer.step(state.x, state.optim, state.grad, state.lr)

    def restart(self, state: CentralizedState, rounds: int, mean: Tensor | None) -> None:
        """Do nothing: a loss is refused."""
