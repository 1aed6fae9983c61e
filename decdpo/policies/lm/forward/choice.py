"""Which way a model's answers are scored: the fast one, wherever it agrees with the plain one."""

from itertools import product

import numpy as np
import torch
from torch import nn

from decdpo.errors import PolicyError
from decdpo.policies.lm.foreign import foreign
from decdpo.policies.lm.forward.attention import ways
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.forward.plain import PlainLM
from decdpo.policies.tokens import TokenizedPairs, Truncation

AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How much the two ways may differ, relatively: more than they round, less than any mistake."""


def choose_scorer(
    module: nn.Module,
    vocabulary: int,
    max_length: int,
    tokens_at_once: int,
    *,
    plain: bool = False,
) -> tuple[PlainLM | PackedLM, tuple[str, ...]]:
    """Return the fast way to score pairs, or a slower one with a note that says why.

    Two pairs of ``max_length`` tokens are scored both ways: some models cannot take several answers
    in a row, look back over fewer tokens than that, or do more to their logits than the fast way
    knows of. The tokens are the same on every process, and so is the choice. plain : do not try.
    """
    first = next(module.parameters())
    slow = PlainLM(module, padded=first.device.type != "cpu")
    if plain:
        return slow, ()
    tokens, rows = probe(vocabulary, max_length), np.arange(2)
    refused: list[str] = []
    with torch.no_grad():
        expected = slow(tokens, rows)
        # Few models want ids of tokens; the states of tokens make a cheaper backward pass.
        tried = ways(first.device, first.dtype)
        for attend, embeds in product(tried, (True, False)):
            fast = PackedLM(module, tokens_at_once, embeds, attend)
            try:
                with foreign("it takes no packed rows", ""):
                    gap = float(((fast(tokens, rows) - expected).abs() / expected.abs()).max())
                why = f"otherwise its log-probabilities would differ by {gap:.1g}, relatively"
            except PolicyError as fault:
                gap, why = np.inf, fault.what
            if gap <= AGREEMENT[first.dtype]:
                slower = f"attention takes masks, which is slower: {refused[0]}" if refused else ""
                return fast, () if attend is tried[0] else (slower,)
            fast.release()
            refused.append(why)
    name = type(module).__name__
    return slow, (f"{name} encodes the prompt anew for every answer, which is slow: {refused[-1]}",)


def probe(vocabulary: int, max_length: int) -> TokenizedPairs:
    """Return two pairs of arbitrary tokens, with answers of unlike lengths."""
    answers = max(1, max_length // 4), max(1, max_length // 8)
    lengths = np.array([[max(1, max_length - max(answers)), *answers], [1, *answers[::-1]]])
    ends = np.cumsum(lengths).reshape(2, 3)
    edges = np.hstack((ends[:, :1] - lengths[:, :1], ends))
    ids = np.random.default_rng(0).integers(vocabulary, size=lengths.sum())
    return TokenizedPairs(ids.astype(np.int32), edges, Truncation(2, max_length))
