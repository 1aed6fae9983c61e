"""What every policy offers the objective."""

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from decdpo.data.shard import PreferenceShard
from decdpo.losses.base import PairLogProbs
from decdpo.params.flat import FlatParams, Layout


class ForwardPass(Protocol):
    """The log-probabilities of one batch, and the way back to the gradient.

    logps : detached (B,) tensors on the policy's device.
    """

    logps: PairLogProbs

    def backward(self, d_chosen: Tensor, d_rejected: Tensor) -> None:
        """Add to ``params.grad`` the gradient for the (B,) cotangents of chosen and rejected."""
        ...


class Policy(Protocol):
    """A model family; one instance serves every agent of a process.

    layout : of the flat parameter vector. concurrent : whether ``forward`` may be called for other
    agents before the ``backward`` of an earlier pass; not where all share one set of weights.
    """

    layout: Layout
    concurrent: bool

    def initial(self) -> Tensor:
        """Return a new (P,) vector: the reference weights, where every agent begins."""
        ...

    def encode(self, shard: PreferenceShard) -> Any:
        """Turn a shard into what ``forward`` reads (features or tokens), once per agent."""
        ...

    def forward(
        self, params: FlatParams, data: Any, rows: np.ndarray, *, need_grad: bool = True
    ) -> ForwardPass:
        """Evaluate the pairs ``rows`` (B,) of encoded ``data`` at ``params.data``.

        Rows are shard rows: training pairs are [0, num_train), held-out ones the rest.
        """
        ...
