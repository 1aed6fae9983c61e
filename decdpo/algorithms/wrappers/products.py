"""Mixing the products of factors in the place of the factors.

Agent i's layer is B_i A_i. Where its algorithm would mix A and B apart, here

    P = B_i A_i + sum_j w_ij (B'_j A'_j - B'_i A'_i)                                      (1)

is the displacement of the products, with the factors A', B' that were sent, and the new A_i, B_i
are the best of rank r for P. What of P has a higher rank is lost; nothing else is. So the mean over
agents is not kept, and whatever an algorithm remembers in the coordinates of A and B loses its
meaning, as these turn: such algorithms and optimizers are refused (``Needs.against_products``).

Our reading of "mix, then truncate", as the server does in Bai et al., "Federated fine-tuning of
large language models under heterogeneous tasks and client resources", 2024 (FlexLoRA).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decdpo.algorithms.base import Algorithm, Needs
from decdpo.messages import Inbox
from decdpo.params.factors import Factors, Products, truncated


@dataclass(frozen=True)
class ProductMixing:
    """The algorithm ``inner``, eq. (1) in the place of its mixing.

    num_shared : M. factors : of every layer. start : (M,) the shared vector that all agents begin
    with, whose A are the frames in which factors are compared.
    """

    inner: Algorithm
    num_shared: int
    factors: tuple[Factors, ...]
    start: Tensor

    @property
    def needs(self) -> Needs:
        """What ``inner`` needs."""
        return self.inner.needs

    def init(self, x: Tensor) -> Any:
        """Return ``inner``'s state at ``x`` (P,)."""
        return self.inner.init(x)

    def message_size(self, num_shared: int) -> int:
        """Return M of ``inner``."""
        return self.inner.message_size(num_shared)

    def local_step(self, state: Any, grad: Tensor, lr: float) -> None:
        """Take ``inner``'s local step."""
        self.inner.local_step(state, grad, lr)

    def message(self, state: Any) -> Tensor:
        """Return ``inner``'s message (M,)."""
        return self.inner.message(state)

    def mix(self, state: Any, inbox: Inbox) -> None:
        """Displace the products, and cut them back to their rank."""
        inbox.settle()
        if not inbox.messages:
            return
        x = state.x[: self.num_shared]
        received = [message.weight for message in inbox.messages]
        weights = (1.0, -sum(received), *received)
        vectors = (x, inbox.sent, *(message.body for message in inbox.messages))
        self._set(x, weights, vectors)

    def mean(self, models: Sequence[Tensor]) -> Tensor:
        """Return a new model (M,) whose products are the mean of those of ``models``, cut back."""
        mean = models[0].clone()
        self._set(mean, [1 / len(models)] * len(models), models)
        return mean

    def _set(self, x: Tensor, weights: Sequence[float], vectors: Sequence[Tensor]) -> None:
        """Give ``x`` (M,) the factors of a weighted sum of products, cut back to their rank."""
        for factors in self.factors:
            frame, _ = factors.of(self.start)
            mixed = Products.of(weights, vectors, factors)
            for target, value in zip(factors.of(x), truncated(mixed, factors.rank, frame)):
                target.copy_(value)

    def restart(self, state: Any, rounds: int, mean: Tensor | None) -> None:
        """Restart as ``inner`` does."""
        self.inner.restart(state, rounds, mean)
