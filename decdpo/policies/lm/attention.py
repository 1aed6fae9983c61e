"""Attention within the segments of a packed row, for any model that asks transformers for it.

Models look their attention up by name and pass unknown keyword arguments on to it. Under the name
``SEGMENTS`` they find ``segment_attention``, to which a forward call hands what one of three ways
has made of the row:

    Masked     segment after segment, each with a mask of its own: on a CPU, where 90% of a mask of
               the whole row would be empty
    MaskedRow  the row at once, with one mask: on a GPU in float32
    Varlen     the row at once, without a mask, by a kernel for sequences of any lengths: on a GPU
               in half precision
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from decdpo.policies.lm.packing import PackedPairs

SEGMENTS = "decdpo_segments"
"""The name under which transformers finds ``segment_attention``."""

ROW = 1024
"""Tokens of the longest row that gets one mask; beyond, most of it is empty, and slower."""

UNIT = 64
"""What the longest sequences told to a kernel are filled up to, for it to be made for few sizes."""


class Attend(Protocol):
    """How the tokens of one packed row see each other."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None
    ) -> Tensor:
        """Return (1, T, heads, D).

        q : (1, heads, T, D). k, v : (1, groups, T, D). scaling : of the scores, D^-1/2 if None.
        softcap : k, if the model caps its scores by k tanh(score / k).
        """
        ...


Way = Callable[[PackedPairs, torch.dtype, torch.device], Attend]
"""Makes an ``Attend`` of a row, for a model of a type on a device."""


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
    segments: Attend | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return (1, T, heads, D) softmax(q k^T scaling + mask) v within each segment.

    query : (1, heads, T, D). key, value : (1, groups, T, D), one of each for heads / groups heads.
    softcap : k, if the model caps its scores by k tanh(score / k). Dropout is off. A call without
    segments is of one sequence, as the model itself makes it.
    """
    if segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap
        )
    return segments(query, key, value, scaling, softcap), None


def ways(device: torch.device, dtype: torch.dtype) -> list[Way]:
    """Return the ways to try on a device, the fastest first."""
    if device.type == "cpu":
        return [Masked.of]
    half = dtype in (torch.bfloat16, torch.float16)
    return [Varlen.of, MaskedRow.of] if half else [MaskedRow.of]


class Masked:
    """Segment after segment.

    masks : for each its tokens, and (S, S) what is added to the attention scores between them.
    """

    def __init__(self, masks: Sequence[tuple[slice, Tensor]]) -> None:
        self._masks = masks

    @classmethod
    def of(cls, row: PackedPairs, dtype: torch.dtype, device: torch.device) -> "Masked":
        """Make the masks of a row."""
        return cls([(slice(s.begin, s.end), s.mask(dtype, device)) for s in row.segments])

    @torch.compiler.disable  # A row of another number of segments would be compiled anew.
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None
    ) -> Tensor:
        """Return (1, T, heads, D), see ``Attend``."""
        k, v = _repeated(q, k), _repeated(q, v)
        attend = _scaled if softcap is None else _capped(softcap)
        parts = [
            attend(q[:, :, span], k[:, :, span], v[:, :, span], mask, scaling)
            for span, mask in self._masks
        ]
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


class MaskedRow(Masked):
    """The whole row as one segment, in which the pairs do not see each other."""

    @classmethod
    def of(cls, row: PackedPairs, dtype: torch.dtype, device: torch.device) -> Masked:
        """Make the mask of a row; one that is longer than ``ROW`` gets a mask a segment."""
        size = len(row.ids)
        if size > ROW:
            return Masked.of(row, dtype, device)
        pair = torch.repeat_interleave(torch.tensor([s.end - s.begin for s in row.segments]))
        answer = torch.zeros(size, dtype=torch.long)
        for segment in row.segments:
            answer[segment.chosen : segment.rejected] = 1
            answer[segment.rejected : segment.end] = 2
        pair, answer = pair.to(device), answer.to(device)
        hidden = (pair[:, None] != pair) | ((answer[:, None] == 2) & (answer == 1))
        hidden |= torch.ones_like(hidden).triu_(1)
        mask = torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
        return cls([(slice(0, size), mask)])


class Varlen:
    """The whole row in one call: every prompt, and every answer after its prompt, is a sequence.

    A sequence of queries sees its keys up to its own place, counted from their ends. The keys of a
    prompt are its own; those of an answer are its prompt's and its own, gathered anew.

    queries, keys : (N + 1,) int32 where the sequences begin and end. gather : (K,) the token of
    each key. longest : the tokens of the longest of both, or a few more.
    """

    def __init__(self, queries: Tensor, keys: Tensor, gather: Tensor, longest: tuple[int, int]):
        self._queries, self._keys, self._gather = queries, keys, gather
        self._longest = longest

    @classmethod
    def of(cls, row: PackedPairs, dtype: torch.dtype, device: torch.device) -> "Varlen":
        """Find the sequences of a row."""
        queries, keys, gather = [0], [0], []
        for s in row.segments:
            prompt = np.arange(s.begin, s.chosen)
            answers = np.arange(s.chosen, s.rejected), np.arange(s.rejected, s.end)
            for own, seen in (
                (prompt, [prompt]),
                *((answer, [prompt, answer]) for answer in answers if len(answer)),
            ):
                queries.append(queries[-1] + len(own))
                keys.append(keys[-1] + sum(map(len, seen)))
                gather += seen
        longest = (max(np.diff(queries)), max(np.diff(keys)))
        return cls(
            torch.tensor(queries, dtype=torch.int32, device=device),
            torch.tensor(keys, dtype=torch.int32, device=device),
            torch.from_numpy(np.concatenate(gather)).to(device),
            (-(-int(longest[0]) // UNIT) * UNIT, -(-int(longest[1]) // UNIT) * UNIT),
        )

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None
    ) -> Tensor:
        """Return (1, T, heads, D), see ``Attend``.

        Raises ``NotImplementedError`` for capped scores, which the kernel does not know.
        """
        if softcap is not None:
            raise NotImplementedError("attention scores are capped")
        k, v = (x[0].transpose(0, 1)[self._gather] for x in (k, v))
        q = q[0].transpose(0, 1).contiguous()
        return varlen(q, k, v, self._queries, self._keys, self._longest, scaling)[None]


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest: tuple[int, int],
    scaling: float | None,
) -> Tensor:
    """Return (T, heads, D): causal attention within sequences, aligned at their ends.

    q : (T, heads, D). k, v : (K, groups, D). queries, keys, longest : see ``Varlen``.
    """
    # What torch.nn.attention.varlen_attn calls, whose wrapping takes a millisecond a layer.
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, queries, keys, *longest, 0.0, True, False, scale=scaling
    )[0]
    return out


def _repeated(q: Tensor, x: Tensor) -> Tensor:
    """Return keys or values for every head of the queries."""
    repeats = q.shape[1] // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, 1)


def _scaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)


def _capped(cap: float) -> Any:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.tanh(q @ k.transpose(2, 3) * scale / cap) * cap + mask
        return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v

    return attend
