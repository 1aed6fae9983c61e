"""The contract of an algorithm: what it needs, explicit state, four small methods."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from decdpo.messages import Inbox
from decdpo.params.optim import SGD

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What must hold for an algorithm to be sound; its class declares it, one checker reads it.

    The checker is ``decdpo.config.needs``. A default asks for the least.

    meets : whom its agents exchange messages with.
    weights : the mixing matrix. Rows and columns that sum to one ("doubly"), a symmetric matrix of
        this kind ("symmetric"), or columns alone ("column", where the algorithm corrects for rows).
    pair_weights : whether the agents may count by their pairs in the mean that mixing keeps.
    own_pace : whether agents may take different numbers of local steps in a round.
    fixed_weights : whether the weights must be the same in every round.
    every_message : whether every message must be mixed exactly once, in its own round.
    equal_steps : whether all agents must step alike along their gradients: no Adam, no clipping.
    plain_steps : whether a local step is ``optimizer.step`` on the state's ``x`` and ``optim``, and
        nothing more.
    instead : the kind of an algorithm that does without the weights and the steps needed here.
    momentum : the key of its own momentum, which excludes any of the optimizer; "" if it has none.
    sends_bytes : whether a message is a code of uint8; else it has the type of the parameters.
    sends_model : whether a message ends with the shared parameters, which neighbours average by
        weights that sum to one.
    in_parts : whether it can mix a part of the vector by itself (``algorithms.parts.InParts``).
    against_products : why adapters cannot be mixed as products of their factors
        (``wrappers.products``); "" if they can.
    on_loss : what the survivors do when an agent is lost: go on with the state they have ("keeps"),
        rebuild their conserved sums by ``restart`` ("restarts"), or end the run ("refuses").
    """

    meets: Literal["neighbours", "server", "nobody"] = "neighbours"
    weights: Literal["doubly", "symmetric", "column"] = "doubly"
    pair_weights: bool = False
    own_pace: bool = False
    fixed_weights: bool = False
    every_message: bool = False
    equal_steps: bool = False
    plain_steps: bool = False
    instead: str = ""
    momentum: str = ""
    sends_bytes: bool = False
    sends_model: bool = False
    in_parts: bool = False
    against_products: str = ""
    on_loss: Literal["keeps", "restarts", "refuses"]

    @property
    def smaller_steps(self) -> str:
        """What helps against steps that are too large."""
        return "lower optim.lr" + ("" if self.equal_steps else " or set optim.clip_norm")


class Algorithm(Protocol[S]):
    """What agent i does with its gradient and its messages.

    ``S`` is a dataclass of tensors and numbers (nested dataclasses allowed) that is checkpointed as
    it is; its field ``x`` is the agent's (P,) parameter vector, the model that is trained, measured
    and exported, updated in place and always at the same address.
    """

    @property
    def needs(self) -> Needs:
        """What must hold for the algorithm to be sound; a constant of the class."""
        ...

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
        """Return the (M,) vector that neighbours shall receive: a view, the exchange copies it."""
        ...

    def mix(self, state: S, inbox: Inbox) -> None:
        """Fold what the neighbours sent into the state, in place."""
        ...

    def restart(self, state: S, rounds: int, mean: Tensor | None) -> None:
        """Begin the conserved sums anew, after ``rounds`` rounds, when agents are lost or come.

        Called on all agents that are left, only where ``needs.on_loss`` is "restarts". mean : (M,)
        of their models, where ``needs.fixed_weights``; None elsewhere.
        """
        ...


def plain_optimizer(algorithm: Algorithm[Any]) -> SGD | None:
    """Return the optimizer whose plain step x <- x - lr g is all of a local step; None otherwise.

    It counts the step in the state's ``optim``.
    """
    # What wraps another algorithm, and may do more in a step, has no optimizer.
    optimizer = getattr(algorithm, "optimizer", None)
    plain = algorithm.needs.plain_steps and isinstance(optimizer, SGD) and optimizer.plain
    return optimizer if plain else None
