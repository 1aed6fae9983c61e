"""Several batches scored together, and how a short vector is filled up so that bits do not change.

A vector operation rounds what is left over after its last full step (32 float32 values at most)
unlike the rest; filled up, a pair is rounded alike whatever lies beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decdpo.losses.base import Leaves, PairScores
from decdpo.policies.base import ForwardPass


class JointPass(Protocol):
    """The scores of several batches, N pairs in all, end to end; and the way back.

    scores : detached (N,) tensors on the policy's device.
    """

    @property
    def scores(self) -> PairScores: ...

    def backward(self, cotangents: Leaves) -> Iterator[None]:
        """Add the gradient of one batch after another to its ``params.grad``; once only.

        cotangents : (N,) of all leaves. A batch's is added when the next item is asked for, so that
        batches may share the buffer of the gradient.
        """
        ...


class JointStep(Protocol):
    """The plain steps of several models along the gradients of their batches, A of each.

    The batches are scored in groups, of some that follow each other, and every group goes backward
    before the next is scored.
    """

    def scores(self, first: int, last: int) -> PairScores:
        """Return the scores (N,) of the batches ``first`` ... ``last`` - 1, end to end."""
        ...

    def backward(self, cotangents: Leaves) -> None:
        """Add up the gradients of the batches scored last; cotangents : (N,) of all leaves."""
        ...

    def descend(self, rates: Sequence[float]) -> np.ndarray:
        """Take the step x <- x - eta g of every batch, in the models themselves.

        rates : (A,) the step sizes eta. Returns whether each gradient is finite, (A,) bool.
        """
        ...


@dataclass
class Apart:
    """A joint pass of batches that were scored one by one. sizes : pairs of each."""

    passes: Sequence[ForwardPass]
    sizes: list[int]

    @property
    def scores(self) -> PairScores:
        """The scores of all, end to end."""
        return joined([one.scores for one in self.passes])

    def backward(self, cotangents: Leaves) -> Iterator[None]:
        """Add the gradient of one batch after another to its ``params.grad``."""
        split = [cotangent.split(self.sizes) for cotangent in cotangents.values()]
        for one, *parts in zip(self.passes, *split):
            one.backward(dict(zip(cotangents, parts)))
            yield


def joined(batches: Sequence[PairScores]) -> PairScores:
    """Return the scores of several batches in one."""
    if len(batches) == 1:
        return batches[0]
    found: dict[str, Any] = {}
    for field in fields(batches[0]):
        columns = [getattr(batch, field.name) for batch in batches]
        known = all(column is not None for column in columns)
        found[field.name] = torch.cat(columns) if known else None
    return type(batches[0])(**found)


class Lanes:
    """Where the pairs of A batches lie once each batch is filled up to a multiple of ``width``.

    sizes : (A,) pairs of every batch, at least 1. starts : (A,) where each begins, unfilled.
    """

    def __init__(self, sizes: list[int], width: int) -> None:
        self.sizes = np.array(sizes)
        self.starts = np.cumsum(self.sizes) - self.sizes
        full = filled(self.sizes, width)
        self._exact = bool((full == self.sizes).all())
        within = np.arange(full.sum()) - np.repeat(np.cumsum(full) - full, full)
        last = np.repeat(self.sizes - 1, full)
        # What fills up is a repetition of the batch's last pair: a loss can always take that.
        self._source = torch.from_numpy(np.repeat(self.starts, full) + np.minimum(within, last))
        self._kept = torch.from_numpy(np.flatnonzero(within <= last))

    def fill(self, scores: PairScores) -> PairScores:
        """Return the scores (N,) of all batches, each filled up; leaves of a graph of their own."""
        full: dict[str, Any] = {}
        for field in fields(scores):
            column = getattr(scores, field.name)
            # Detached, so that what is given stays free of the graph of a loss.
            known = column is not None
            full[field.name] = self._take(column, self._source).detach() if known else None
        return type(scores)(**full)

    def spread(self, values: np.ndarray, like: Tensor) -> Tensor:
        """Put one value (N,) at every pair and 0 at what fills up, with the type of ``like``."""
        given = torch.from_numpy(values).to(like)
        if self._exact:
            return given
        return torch.zeros_like(like).index_copy_(0, self._kept.to(like.device), given)

    def drop(self, full: Tensor) -> Tensor:
        """Return the columns of ``full`` that belong to a pair, (K, N)."""
        return self._take(full, self._kept)

    def _take(self, vector: Tensor, places: Tensor) -> Tensor:
        return vector if self._exact else vector.index_select(-1, places.to(vector.device))


def filled(size: Any, width: int) -> Any:
    """Return ``size``, or every size of an array, filled up to a multiple of ``width``."""
    return -(-size // width) * width


Together = Callable[..., JointPass]
"""``Policy.forward_all``, where a policy has it."""

StepTogether = Callable[..., JointStep | None]
"""``Policy.step_all``, where a policy has it; None is returned where it is no gain."""
