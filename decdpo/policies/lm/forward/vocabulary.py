"""The gradient of what has a row for every token: the matrix of the embedding, and of the head.

It is the largest matrix of a small model, often one for both. Autograd makes a dense gradient of
each use, mostly zeros for the embedding, and adds them up; the memory for that is taken anew for
every part of a batch, which costs more than the arithmetic. Here both uses share one buffer, made
once, and only rows of tokens that were fed are added for the embedding. The bits are autograd's:

    dW = (dW_head + dW_embedding),    g += dW
"""

from typing import Any

import torch
from torch import Tensor, nn

from decdpo.params.flat import main_grad


class VocabularyGradient:
    """Where the gradient of a (V, H) matrix gathers during one backward pass.

    target : (V, H) to which it is added. scratch : (V, H) float32.
    tied : whether the embedding's part follows the head's.
    """

    def __init__(self, target: Tensor, scratch: Tensor, tied: bool) -> None:
        self._target = target
        self._scratch = scratch
        self._tied = tied
        self._begun = False

    def head(self, slopes: Tensor, hidden: Tensor) -> None:
        """Take sum_a slopes_a hidden_a^T of a chunk of tokens: (A, V), (A, H)."""
        if slopes.dtype != self._scratch.dtype:
            product = slopes.t() @ hidden
            (self._scratch.add_ if self._begun else self._scratch.copy_)(product)
        elif self._begun:
            self._scratch.addmm_(slopes.t(), hidden)
        else:
            torch.mm(slopes.t(), hidden, out=self._scratch)
        self._begun = True

    def head_done(self) -> None:
        """Add the head's gradient to the target, unless the embedding's is still to come."""
        if self._begun and not self._tied:
            self._target.add_(self._scratch)
            self._begun = False

    def embedding(self, rows: Tensor, values: Tensor) -> None:
        """Take the gradient (U, H) of the ``rows`` (U,), and add all to the target."""
        to = self._scratch if self._begun else self._target
        to.index_add_(0, rows, values.to(to.dtype))
        if self._begun:
            self._target.add_(self._scratch)
            self._begun = False


class Vocabulary:
    """Makes the ``VocabularyGradient`` of a model's head and embedding, again and again.

    module : a causal language model of transformers. embeds : whether it takes states of tokens.
    """

    def __init__(self, module: Any, embeds: bool = True) -> None:
        self.embedding = module.get_input_embeddings()
        self.head = module.get_output_embeddings()
        # A subclass may do more to its rows than to look them up.
        self.plain = (
            embeds
            and type(self.embedding) is nn.Embedding
            and self.embedding.max_norm is None
            and not self.embedding.scale_grad_by_freq
        )
        self._scratch: Tensor | None = None

    def fed(self, ids: Tensor, gradient: VocabularyGradient | None) -> dict[str, Tensor]:
        """Return what the model is given of the tokens ``ids`` (T,), as keyword arguments.

        ids : on the CPU, where their distinct ones are found without waiting for a GPU.
        """
        device = self.embedding.weight.device
        if not self.plain:
            return {"input_ids": ids[None].to(device)}
        if gradient is None:
            return {"inputs_embeds": self.embedding(ids.to(device))[None]}
        return {"inputs_embeds": _embed(self.embedding, ids, gradient)[None]}

    def looked_up(self, ids: Tensor, gradient: VocabularyGradient | None) -> Tensor:
        """Return the states (T, H) of the tokens ``ids`` (T,), which lie where the weights do.

        Nothing depends on which tokens are alike: a GPU may repeat this with others. It needs
        ``plain``.
        """
        if gradient is None:
            states: Tensor = self.embedding(ids)
        else:
            padding = self.embedding.padding_idx
            states = _LookedUp.apply(self.embedding.weight, ids, padding, gradient)
        return states

    def gradients(self) -> tuple[VocabularyGradient | None, VocabularyGradient | None]:
        """Return where the head's and the embedding's gradient go; None is autograd's own way."""
        head, embedding = self.head.weight, self.embedding.weight
        tied = head is embedding
        if not torch.is_grad_enabled() or (tied and not self.plain):
            return None, None
        of_head = self._gradient(head, tied) if head.requires_grad else None
        if tied:
            return of_head, of_head
        found = self.plain and embedding.requires_grad
        return of_head, self._gradient(embedding, False) if found else None

    def _gradient(self, weight: Tensor, tied: bool) -> VocabularyGradient | None:
        target = main_grad(weight)
        if target is None:
            return None
        if self._scratch is None and weight is self.head.weight:
            self._scratch = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        scratch = target if self._scratch is None else self._scratch
        return VocabularyGradient(target, scratch, tied)


def _embed(embedding: nn.Embedding, ids: Tensor, gradient: VocabularyGradient) -> Tensor:
    """Return the states (T, H) of the tokens ``ids`` (T,)."""
    device, padding = embedding.weight.device, embedding.padding_idx
    # As in nn.Embedding, the row of the padding token does not learn.
    kept = None if padding is None else torch.nonzero(ids != padding)[:, 0]
    rows, places = torch.unique(ids if kept is None else ids[kept], return_inverse=True)
    if kept is not None:
        kept = kept.to(device)
    states: Tensor = _Rows.apply(
        embedding.weight, ids.to(device), kept, rows.to(device), places.to(device), gradient
    )
    return states


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        ids: Tensor,
        kept: Tensor | None,
        rows: Tensor,
        places: Tensor,
        gradient: VocabularyGradient,
    ) -> Tensor:
        ctx.save_for_backward(kept, rows, places)
        ctx.gradient = gradient
        return weight.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, ...]:
        (slope,) = slopes
        kept, rows, places = ctx.saved_tensors
        if kept is not None:
            slope = slope[kept]
        total = slope.new_zeros(len(rows), slope.shape[1]).index_add_(0, places, slope)
        ctx.gradient.embedding(rows, total)
        return (None,) * 6


class _LookedUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, gradient: VocabularyGradient
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.gradient = padding, gradient
        return weight.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, ...]:
        (slope,) = slopes
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            # As in nn.Embedding, the row of the padding token does not learn.
            slope = slope.masked_fill((ids == ctx.padding)[:, None], 0.0)
        ctx.gradient.embedding(ids, slope)
        return (None,) * 4
