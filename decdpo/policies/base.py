"""What every policy offers the objective."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from torch import Tensor

from decdpo.data.shard import PreferenceShard
from decdpo.losses.base import Leaves, PairScores
from decdpo.params.flat import FlatParams, Layout


class Draw(NamedTuple):
    """The address of what is drawn at random in a local step: of which agent, and which step."""

    agent: int
    step: int


class ForwardPass(Protocol):
    """The scores of one batch, and the way back to the gradient.

    scores : detached (B,) tensors on the policy's device.
    """

    scores: PairScores

    def backward(self, cotangents: Leaves) -> None:
        """Add to ``params.grad`` the gradient for the (B,) cotangents of all leaves; once only."""
        ...


class Reference(Protocol):
    """The fixed policy that a loss compares with; it is not what agents begin from."""

    def scores(self, data: Any, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (B,) log pi_ref of the chosen and of the rejected answers of ``rows`` (B,).

        data : an encoded shard, which may hold the values already.
        """
        ...


class Policy(Protocol):
    """A model family; one instance serves every agent of a process.

    layout : of the flat parameter vector. digest : SHA-256 of all that scores depend on and neither
    the vector nor the layout holds: the reference, frozen weights, configuration, feature maps.
    concurrent : whether ``forward`` may be called for other
    agents before the ``backward`` of an earlier pass; not where all share one set of weights.
    A class may name quantities of its own to be recorded: ``metrics``, a mapping of name to
    ``Metric``; and where the shared vector holds factors of products: ``factors``, see
    ``params.factors``.
    """

    layout: Layout
    concurrent: bool

    @property
    def digest(self) -> str: ...

    @property
    def reference(self) -> Reference: ...

    @property
    def identity(self) -> Mapping[str, str]:
        """What a run depends on besides layout, weights, data and configuration, as digests."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the model."""
        ...

    def initial(self) -> Tensor:
        """Return a new (P,) vector: where every agent begins, which may not be the reference."""
        ...

    def encode(self, shard: PreferenceShard) -> Any:
        """Turn a shard into what ``forward`` reads (features or tokens), once per agent."""
        ...

    def parts(self, data: Any, rows: np.ndarray) -> list[np.ndarray]:
        """Split the pairs ``rows`` (B,) into what memory holds at once, for ``forward``.

        The parts together are a permutation of ``rows``. A concurrent policy has a single part.
        """
        ...

    def forward(
        self, params: FlatParams, data: Any, rows: np.ndarray, *, need_grad: bool = True
    ) -> ForwardPass:
        """Evaluate the pairs ``rows`` (B,) of encoded ``data`` at ``params.data``.

        Rows are shard rows: training pairs are [0, num_train), held-out ones the rest.
        """
        ...

    def export(self, x: Tensor, out: str | os.PathLike[str]) -> Path:
        """Write the model with parameters ``x`` (P,) to ``out``, and return where it is."""
        ...


class NoisyPolicy(Policy, Protocol):
    """A policy whose local steps may draw at random what they leave out.

    noisy : whether they do.
    """

    noisy: bool

    def forward(
        self,
        params: FlatParams,
        data: Any,
        rows: np.ndarray,
        *,
        need_grad: bool = True,
        draw: Draw | None = None,
    ) -> ForwardPass:
        """Do ``Policy.forward`` with what is drawn for ``draw``; with nothing drawn if None."""
        ...


def is_noisy(policy: Policy) -> TypeGuard[NoisyPolicy]:
    """Say whether the local steps of a policy draw at random."""
    return bool(getattr(policy, "noisy", False))
