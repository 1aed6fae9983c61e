"""Attention within the segments of a packed row, for any model that asks transformers for it.

Models look their attention up by name and pass unknown keyword arguments on to it. Under the name
``SEGMENTS`` they find ``segment_attention``, to which a forward call hands what one of three ways
has made of the row:

    Masked     segment after segment, each by itself: on a CPU, where 90% of a mask of the whole row
               would be empty
    MaskedRow  the row at once, with one mask: on a GPU in float32
    Varlen     the row at once, without a mask, by a kernel for sequences of any lengths: on a GPU
               in half precision
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from decdpo.policies.lm.forward.packing import PackedPairs
from decdpo.policies.lm.forward.remade import remember

SEGMENTS = "decdpo_segments"
"""The name under which transformers finds ``segment_attention``."""

ROW = 1024
"""Tokens of the longest row that gets one mask; beyond, most of it is empty, and slower."""

LONG = 384
"""Tokens from which on a segment attends in two parts on a CPU: it takes 1.3 times less at 550
tokens, 1.5 times less at 1,000."""

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


@dataclass(frozen=True)
class Part:
    """Queries of a row that attend together.

    queries : consecutive tokens. keys : the tokens that they may see, as consecutive ones. mask :
    (Q, K) what is added to the scores; without one each query sees the keys up to its own.
    """

    queries: slice
    keys: tuple[slice, ...]
    mask: Tensor | None


class Masked:
    """Segment after segment; a long one in two parts, which spares what the answers do not see."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    @classmethod
    def of(cls, row: PackedPairs, dtype: torch.dtype, device: torch.device) -> "Masked":
        """Make the masks of a row."""
        parts: list[Part] = []
        for s in row.segments:
            if s.end - s.begin < LONG or s.rejected == s.end:
                whole = slice(s.begin, s.end)
                parts.append(Part(whole, (whole,), s.mask(dtype, device)))
                continue
            first, last = slice(s.begin, s.rejected), slice(s.rejected, s.end)
            prompt, own = s.chosen - s.begin, s.end - s.rejected
            mask = torch.full((own, prompt + own), -torch.inf, dtype=dtype, device=device)
            seen = slice(s.begin, s.chosen), last
            parts += [Part(first, (first,), None), Part(last, seen, mask.triu_(prompt + 1))]
        return cls(parts)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None
    ) -> Tensor:
        """Return (1, T, heads, D), see ``Attend``."""
        keys, values = Repeated(q, k), Repeated(q, v)
        attend = _scaled if softcap is None else _capped(softcap)
        return joined([
            attend(q[:, :, p.queries], keys.of(p.keys), values.of(p.keys), p.mask, scaling)
            for p in self._parts
        ])  # fmt: skip


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
        return cls([Part(slice(0, size), (slice(0, size),), mask)])


class Sequences(NamedTuple):
    """The sequences of a row: every prompt, and every answer after its prompt.

    queries, keys : N + 1 places where the sequences begin and end. gather : (K,) the token of each
    key: those of a prompt are its own, those of an answer its prompt's and its own. uses : (T, 3)
    the keys that each token has become, -1 for none. longest : the queries and the keys of the
    longest.
    """

    queries: list[int]
    keys: list[int]
    gather: np.ndarray
    uses: np.ndarray
    longest: tuple[int, int]

    @classmethod
    def of(cls, row: PackedPairs) -> "Sequences":
        """Find the sequences of a row."""
        queries, keys, gather = [0], [0], []
        uses = np.full((len(row.ids), 3), -1)
        for s in row.segments:
            prompt = np.arange(s.begin, s.chosen)
            answers = np.arange(s.chosen, s.rejected), np.arange(s.rejected, s.end)
            seen = [(prompt, prompt[:0]), *((prompt, answer) for answer in answers if len(answer))]
            for use, (before, own) in enumerate(seen):
                uses[before, use] = keys[-1] + np.arange(len(before))
                uses[own, 0] = keys[-1] + len(before) + np.arange(len(own))
                queries.append(queries[-1] + len(own if use else before))
                keys.append(keys[-1] + len(before) + len(own))
                gather += [before, own]
        longest = int(max(np.diff(queries))), int(max(np.diff(keys)))
        return cls(queries, keys, np.concatenate(gather), uses, longest)


class Varlen:
    """The whole row in one call: every prompt, and every answer after its prompt, is a sequence.

    A sequence of queries sees its keys up to its own place, counted from their ends. The keys of
    answers are gathered anew.

    queries, keys : (N + 1,) int32 where the sequences begin and end. gather : (K,) the token of
    each key. uses : (T, 3) the keys of each token that have a gradient, -1 for none. longest : the
    tokens of the longest of both, or a few more.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        gather: Tensor,
        uses: Tensor,
        longest: tuple[int, int],
    ) -> None:
        self._queries, self._keys, self._gather, self._uses = queries, keys, gather, uses
        self._longest = longest

    @classmethod
    def of(cls, row: PackedPairs, dtype: torch.dtype, device: torch.device) -> "Varlen":
        """Find the sequences of a row."""
        own = Sequences.of(row)
        return cls(
            torch.tensor(own.queries, dtype=torch.int32, device=device),
            torch.tensor(own.keys, dtype=torch.int32, device=device),
            torch.from_numpy(own.gather).to(device),
            torch.from_numpy(own.uses).to(device),
            (-(-own.longest[0] // UNIT) * UNIT, -(-own.longest[1] // UNIT) * UNIT),
        )

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None
    ) -> Tensor:
        """Return (1, T, heads, D), see ``Attend``.

        Raises ``NotImplementedError`` for capped scores, which the kernel does not know.
        """
        if softcap is not None:
            raise NotImplementedError("attention scores are capped")
        k, v = (_Gathered.apply(x[0].transpose(0, 1), self._gather, self._uses) for x in (k, v))
        q = q[0].transpose(0, 1).contiguous()
        return varlen(q, k, v, self._queries, self._keys, self._longest, scaling)[None]


class _Gathered(torch.autograd.Function):
    """Gathers tokens, each at most three times, so that nothing is sorted on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Tensor, uses: Tensor) -> Tensor:
        ctx.save_for_backward(uses)
        return x.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (uses,) = ctx.saved_tensors
        parts = slopes[0][uses.clamp(min=0)]
        return parts.masked_fill_((uses < 0)[:, :, None, None], 0.0).sum(dim=1), None, None


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


class Repeated:
    """Keys or values x (1, groups, T, D) for every head of the queries q (1, heads, T, D).

    The backward pass makes the copies again, so that x alone is kept.
    """

    def __init__(self, q: Tensor, x: Tensor) -> None:
        self._x, self._repeats = x, q.shape[1] // x.shape[1]
        # What makes them again must not hold them: it knows their numbers alone.
        self._all = x
        if self._repeats > 1:
            again = partial(_repeated, n=self._repeats)
            self._all = remember(again(x), again, x)

    def of(self, spans: tuple[slice, ...]) -> Tensor:
        """Return the tokens of some spans, one after another."""
        if len(spans) == 1:
            return self._all[:, :, spans[0]]
        again = partial(_repeated_of, n=self._repeats, spans=spans)
        return remember(_picked(self._all, spans), again, self._x)


def _repeated(x: Tensor, n: int) -> Tensor:
    return x if n == 1 else x.repeat_interleave(n, 1)


def _picked(x: Tensor, spans: tuple[slice, ...]) -> Tensor:
    return torch.cat([x[:, :, span] for span in spans], dim=2)


def _repeated_of(x: Tensor, n: int, spans: tuple[slice, ...]) -> Tensor:
    return _picked(_repeated(x, n), spans)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return (1, T, heads, D) of the parts of a row (1, heads, T_i, D), which attention keeps."""
    turned = [part.transpose(1, 2) for part in parts]
    if len(turned) == 1:
        return turned[0].contiguous()
    return remember(torch.cat(turned, dim=1), lambda *x: torch.cat(x, dim=1), *turned)


def _scaled(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    causal = mask is None
    return scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scaling)


def _capped(cap: float) -> Any:
    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        if mask is None:
            mask = q.new_full((q.shape[2], k.shape[2]), -torch.inf).triu_(1)
        scores = torch.tanh(q @ k.transpose(2, 3) * scale / cap) * cap + mask
        return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v

    return attend
