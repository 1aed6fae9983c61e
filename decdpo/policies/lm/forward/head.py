"""Log-probabilities of single tokens from hidden states, without the matrix of all logits.

    log pi(y | h) = c(w_y . h + b_y) - log sum_v exp c(w_v . h + b_v)

with the optional soft cap c(z) = k tanh(z / k). Of A scored tokens over a vocabulary of V, the
(A, V) logits never exist: a chunk of tokens is computed, used and dropped, once forward and once
more for the gradient, for which one chunk alone is kept

    dlogit_v = g ([v = y] - pi_v) c'(z_v),    dh = W^T dlogit,    dW = sum over tokens dlogit h^T.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from decdpo.policies.lm.forward.vocabulary import VocabularyGradient

CHUNK_VALUES = 1 << 23
"""Logits computed at a time: 32 MiB in float32."""


class LowRank(NamedTuple):
    """What a head W + P Q adds to the logits W h. low : (A, r) Q h. up : (V, r) P."""

    low: Tensor
    up: Tensor


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_values: int = CHUNK_VALUES,
    gradient: VocabularyGradient | None = None,
    added: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return (A,) float32 log-probabilities (nats) of the tokens ``targets`` (A,).

    hidden : (A, H) states that predict them. weight : (V, H), bias : (V,) of the head; where it is
    frozen, no gradient of it is formed. softcap : k, if the model caps its logits. The softmax is
    taken in float32. The gradient of the weight is summed over chunks in float32.
    gradient : where that of the weight goes, if not the way that autograd takes. added : Q h (A, r)
    and P (V, r), whose product is added to the logits before the cap.
    """
    low, up = added if added is not None else (None, None)
    result: Tensor = _TokenLogps.apply(
        hidden, weight, bias, targets, softcap, chunk_values, gradient, low, up
    )
    return result


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        chunk_values: int,
        gradient: VocabularyGradient | None,
        low: Tensor | None,
        up: Tensor | None,
    ) -> Tensor:
        step = max(1, chunk_values // weight.shape[0])
        logps, norms = [], []
        logits: Tensor | None = None
        for begin in reversed(range(0, len(targets), step)):
            part = slice(begin, begin + step)
            # Freed before the next chunk is made.
            logits = None
            logits = _logits(hidden[part], weight, bias, softcap, _of(low, up, part))
            y = targets[part]
            norms.append(logits.logsumexp(dim=1))
            logps.append(logits.gather(1, y[:, None])[:, 0] - norms[-1])
        empty = hidden.new_zeros(0, dtype=torch.float32)
        found = torch.cat([empty, *reversed(norms)]), torch.cat([empty, *reversed(logps)])
        ctx.save_for_backward(hidden, weight, bias, targets, found[0], low, up)
        ctx.softcap, ctx.step, ctx.gradient = softcap, step, gradient
        # Backward needs the memory of a chunk anyway, and begins with the first one.
        ctx.first = logits if any(ctx.needs_input_grad) else None
        return found[1]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        hidden, weight, bias, targets, norms, low, up = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight: Tensor | None = None
        d_bias = bias.new_zeros(bias.shape, dtype=torch.float32) if wants_bias else None
        d_low = None if low is None else torch.empty_like(low)
        d_up = None if up is None else torch.zeros_like(up, dtype=torch.float32)
        kept, ctx.first = ctx.first, None
        for begin in range(0, len(targets), ctx.step):
            part = slice(begin, begin + ctx.step)
            logits = kept
            if logits is None:
                logits = _logits(hidden[part], weight, bias, ctx.softcap, _of(low, up, part))
            kept = None
            d = _slopes(logits, targets[part], norms[part], slope[part], ctx.softcap)
            if d_bias is not None:
                d_bias.add_(d.sum(dim=0))
            d = d.to(weight.dtype)
            if d_low is not None and d_up is not None:
                torch.mm(d, up, out=d_low[part])
                d_up.add_(d.t() @ low[part])
            if d_hidden is not None:
                torch.mm(d, weight, out=d_hidden[part])
            if ctx.gradient is not None:
                ctx.gradient.head(d, hidden[part])
            elif wants_weight:
                d_weight = _add_outer(d_weight, d, hidden[part])
        if ctx.gradient is not None:
            ctx.gradient.head_done()
        elif wants_weight and d_weight is None:
            d_weight = torch.zeros_like(weight)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 4,
            d_low,
            None if d_up is None else d_up.to(up.dtype),
        )


def _of(low: Tensor | None, up: Tensor | None, part: slice) -> LowRank | None:
    """Return what is added to the logits of a chunk of tokens."""
    return None if low is None or up is None else LowRank(low[part], up)


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    added: LowRank | None = None,
) -> Tensor:
    """Return the (A, V) logits of a chunk in float32, capped; a tensor of its own."""
    logits = linear(hidden, weight, bias).float()
    if added is not None:
        logits.add_(linear(added.low, added.up).float())
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _slopes(
    logits: Tensor, targets: Tensor, norms: Tensor, slope: Tensor, softcap: float | None
) -> Tensor:
    """Return dL/dlogits (A, V) before the cap, for dL/dlog pi = ``slope`` (A,), over ``logits``."""
    bend = None if softcap is None else 1.0 - (logits / softcap).square_()
    d = logits.sub_(norms[:, None]).exp_().mul_(-slope[:, None])
    d.scatter_add_(1, targets[:, None], slope[:, None])
    return d if bend is None else d.mul_(bend)


def _add_outer(total: Tensor | None, slopes: Tensor, hidden: Tensor) -> Tensor:
    """Add sum_a slopes_a hidden_a^T to ``total`` (V, H) float32, or begin it."""
    if total is None:
        return (slopes.t() @ hidden).float()
    if slopes.dtype == total.dtype:
        return total.addmm_(slopes.t(), hidden)
    return total.add_(slopes.t() @ hidden)
