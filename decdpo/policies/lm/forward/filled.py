"""Packed rows filled up to few sizes, so that what a GPU does for one it can repeat for others.

What is filled in takes part in nothing: its tokens are sequences of their own, and what is scored
of them is summed where nobody reads it. Its gradient is exactly 0. It is spread over all tokens,
since a GPU adds up what falls on one token one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decdpo.policies.lm.forward.attention import Sequences
from decdpo.policies.lm.forward.packing import PackedPairs

LEAST = 64
"""What sizes are multiples of, for short rows."""

FINE, MEDIUM, COARSE = 8, 4, 2
"""Sizes between a number and its double: of tokens, which cost most, of scored ones, of keys."""

MANY = 16
"""What numbers of sequences and of answers are multiples of."""


def up(count: int, steps: int) -> int:
    """Return the least size that is not below ``count``; there are ``steps`` in each doubling."""
    unit = max(LEAST, (1 << (max(count, 1) - 1).bit_length()) // (2 * steps))
    return max(1, -(-count // unit)) * unit


class Sizes(NamedTuple):
    """How much a filled row has of everything.

    tokens : T. scored : A. keys : K, gathered for attention. sequences : N. answers : P, but for
    one more that takes up what is filled in. queries, seen : of the longest sequence, or more.
    """

    tokens: int
    scored: int
    keys: int
    sequences: int
    answers: int
    queries: int
    seen: int


@dataclass(frozen=True)
class Filled:
    """A filled row, whose integers lie in one vector: one copy brings it to a GPU.

    ids, positions : (T,). gather : (K,) the token of each key. uses : (T, 3) the keys of each token
    that may have a gradient. sources : (A,) tokens whose states predict. targets : (A,) what they
    predict. answers : (A,) in which answer that is, P for none. queries, keys : (N + 1,) where
    sequences begin and end, see ``attention.Varlen``.
    """

    sizes: Sizes
    values: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The parts of the vector, in the order of above."""
        t, a, k, n = self.sizes[:4]
        ids, positions, gather, uses, *rest = self.values.split(
            [t, t, k, 3 * t, a, a, a, n + 1, n + 1]
        )
        return ids, positions, gather, uses.view(t, 3), *rest

    def on(self, device: torch.device) -> "Filled":
        """Return it on a device."""
        if device.type == "cpu":
            return self
        return Filled(self.sizes, self.values.pin_memory().to(device, non_blocking=True))

    def anew(self) -> "Filled":
        """Return a copy, at an address of its own."""
        return Filled(self.sizes, self.values.clone())


def fill(row: PackedPairs) -> Filled:
    """Fill up a packed row."""
    own = Sequences.of(row)
    count, scored, keys = len(row.ids), len(row.targets), len(own.gather)
    longest = [1 << max(6, (size - 1).bit_length()) for size in own.longest]
    # Every sequence that is filled in has a token at least, and no more keys than the longest.
    extra = 1
    while True:
        tokens = up(count + extra, FINE)
        more = tokens - count
        more_keys = up(keys + more, COARSE) - keys
        needed = max(-(-more // longest[0]), -(-more_keys // (longest[1] - 2)))
        if needed <= more:
            break
        extra = needed
    cuts = _even(more, needed)
    key_cuts = _even(more_keys - more, needed) + cuts
    sizes = Sizes(
        tokens=tokens,
        scored=up(scored, MEDIUM),
        keys=keys + more_keys,
        sequences=-(-(len(own.queries) - 1 + needed) // MANY) * MANY,
        answers=-(-len(row.lengths) // MANY) * MANY,
        queries=longest[0],
        seen=longest[1],
    )
    filling, uses = [own.gather], np.full((tokens, 3), -1)
    uses[:count] = own.uses
    for i in range(needed):
        begin, end = count + cuts[i], count + cuts[i + 1]
        others = (key_cuts[i + 1] - key_cuts[i]) - (end - begin)
        filling += [(key_cuts[i] + np.arange(others)) % tokens, np.arange(begin, end)]
        uses[begin:end, 0] = keys + key_cuts[i] + others + np.arange(end - begin)
    rest = sizes.scored - scored
    answers = np.repeat(np.arange(len(row.lengths)), row.lengths)
    values = [
        row.ids.numpy(), np.arange(more) % (int(row.ids.max()) + 1),
        row.positions.numpy(), np.arange(more) % own.longest[0],
        *filling,
        uses.ravel(),
        row.sources.numpy(), np.arange(rest) % tokens,
        row.targets.numpy(), np.zeros(rest),
        answers, np.full(rest, sizes.answers),
        _ends(own.queries, count + cuts[1:], sizes.sequences),
        _ends(own.keys, keys + key_cuts[1:], sizes.sequences),
    ]  # fmt: skip
    return Filled(sizes, torch.from_numpy(np.concatenate(values).astype(np.int64)))


def _even(total: int, parts: int) -> np.ndarray:
    """Return (parts + 1,) where about equal parts of ``total`` begin and end."""
    cuts: np.ndarray = np.arange(parts + 1) * total // parts
    return cuts


def _ends(own: Sequence[int], more: np.ndarray, sequences: int) -> np.ndarray:
    """Return (N + 1,) the ends of all sequences; those beyond the last have nothing."""
    ends = np.concatenate((own, more))
    return np.concatenate((ends, np.full(sequences + 1 - len(ends), ends[-1])))
