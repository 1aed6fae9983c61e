"""Attention within the segments of a packed row, for any model that asks transformers for it.

Models look their attention up by name and pass unknown keyword arguments on to it. Under the name
``SEGMENTS`` they find ``segment_attention``, to which a forward call hands its segments.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

SEGMENTS = "decdpo_segments"
"""The name under which transformers finds ``segment_attention``."""

Masks = Sequence[tuple[slice, Tensor]]
"""For each segment its tokens, and (S, S) what is added to the attention scores between them."""


def register() -> None:
    """Make ``segment_attention`` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTS, segment_attention)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Masks = (),
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return (1, T, heads, D) softmax(q k^T scaling + mask) v within each segment.

    query : (1, heads, T, D). key, value : (1, groups, T, D), one of each for heads / groups heads.
    softcap : k, if the model caps its scores by k tanh(score / k). Dropout is off. A call without
    segments is of one sequence, as the model itself makes it.
    """
    if not segments:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap
        )
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    attend = _scaled if softcap is None else _capped(softcap)
    parts = [
        attend(query[:, :, span], key[:, :, span], value[:, :, span], mask, scaling)
        for span, mask in segments
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _scaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)


def _capped(cap: float) -> Any:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.tanh(q @ k.transpose(2, 3) * scale / cap) * cap + mask
        return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v

    return attend
