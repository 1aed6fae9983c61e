"""The contract of an algorithm: explicit state, four small methods."""

from typing import Protocol, TypeVar

from torch import Tensor

from decdpo.messages import Inbox

S = TypeVar("S")


class Algorithm(Protocol[S]):
    """What agent i does with its gradient and its letters.

    ``S`` is a dataclass of tensors and numbers (nested dataclasses allowed) that is checkpointed as
    it is; its field ``x`` is the agent's (P,) parameter vector, the model that is trained, measured
    and exported, updated in place and always at the same address.
    """

    def init(self, x: Tensor) -> S:
        """Return the state of an agent that starts at ``x`` (P,).

        The state keeps ``x`` as its own, or holds a contiguous copy in a larger buffer.
        """
        ...

    def message_size(self, num_shared: int) -> int:
        """Return M, the values in a message, for ``num_shared`` shared parameters."""
        ...

    def local_step(self, state: S, grad: Tensor, lr: float) -> None:
        """Take one local step with ``grad`` (P,), which is lent as scratch and must not be kept."""
        ...

    def message(self, state: S) -> Tensor:
        """Return the (M,) vector that neighbours shall hear: a view, the exchange copies it."""
        ...

    def mix(self, state: S, inbox: Inbox) -> None:
        """Fold what the neighbours sent into the state, in place."""
        ...
