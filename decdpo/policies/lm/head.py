"""Log-probabilities of single tokens from hidden states, without the matrix of all logits.

    log pi(y | h) = c(w_y . h + b_y) - log sum_v exp c(w_v . h + b_v)

with the optional soft cap c(z) = k tanh(z / k). Of A scored tokens over a vocabulary of V, the
(A, V) logits never exist: a chunk of tokens is computed, used and dropped, once forward and once
more for the gradient

    dlogit_v = g ([v = y] - pi_v) c'(z_v),    dh = W^T dlogit,    dW = sum over tokens dlogit h^T.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

CHUNK_VALUES = 1 << 23
"""Logits computed at a time: 32 MiB in float32."""


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_values: int = CHUNK_VALUES,
) -> Tensor:
    """Return (A,) float32 log-probabilities (nats) of the tokens ``targets`` (A,).

    hidden : (A, H) states that predict them. weight : (V, H), bias : (V,) of the head; where it is
    frozen, no gradient of it is formed. softcap : k, if the model caps its logits. The softmax is
    taken in float32. The gradient of the weight is summed over chunks in float32.
    """
    result: Tensor = _TokenLogps.apply(hidden, weight, bias, targets, softcap, chunk_values)
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
    ) -> Tensor:
        step = max(1, chunk_values // weight.shape[0])
        logps, norms = [], []
        for h, y in zip(hidden.split(step), targets.split(step)):
            logits = _logits(h, weight, bias, softcap)
            norms.append(logits.logsumexp(dim=1))
            logps.append(logits.gather(1, y[:, None])[:, 0] - norms[-1])
        empty = hidden.new_zeros(0, dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat([empty, *norms]))
        ctx.softcap, ctx.step = softcap, step
        return torch.cat([empty, *logps])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        hidden, weight, bias, targets, norms = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden: list[Tensor] = []
        d_weight = weight.new_zeros(weight.shape, dtype=torch.float32) if wants_weight else None
        d_bias = bias.new_zeros(bias.shape, dtype=torch.float32) if wants_bias else None
        pieces = (tensor.split(ctx.step) for tensor in (hidden, targets, norms, slope))
        for h, y, norm, g in zip(*pieces):
            logits = _logits(h, weight, bias, ctx.softcap)
            bend = None if ctx.softcap is None else 1.0 - (logits / ctx.softcap).square_()
            d = logits.sub_(norm[:, None]).exp_().mul_(-g[:, None])
            d.scatter_add_(1, y[:, None], g[:, None])
            if bend is not None:
                d.mul_(bend)
            if d_bias is not None:
                d_bias.add_(d.sum(dim=0))
            d = d.to(weight.dtype)
            if wants_hidden:
                d_hidden.append(d @ weight)
            if d_weight is not None:
                _add_outer(d_weight, d, h)
        return (
            torch.cat([hidden[:0], *d_hidden]) if wants_hidden else None,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Return the (A, V) logits of a chunk in float32, capped; a tensor of its own."""
    logits = linear(hidden, weight, bias).float()
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _add_outer(total: Tensor, slopes: Tensor, hidden: Tensor) -> None:
    """Add sum_a slopes_a hidden_a^T to ``total`` (V, H) float32."""
    if slopes.dtype == total.dtype:
        total.addmm_(slopes.t(), hidden)
    else:
        total.add_(slopes.t() @ hidden)
