"""The reference of a language model: kept values, or a frozen model that computes them anew.

A pair's values are found by the digest of the reference's weights and configuration and of the
tokens of its prompt and answers. So they survive whatever does not change these: another learning
rate, loss, hold-out, length limit that cuts nothing, run or run folder. Pairs that are missing are
scored one by one, whatever is missing beside them, so that the values have the same bits for any
placement of the agents and any history of the file.

Machines round differently, and rewards must begin at exactly 0. With every value stands the digest
of what the machine that computed it makes of a few fixed tokens; one that makes something else of
them scores the pair again. Besides, the longest pair is always scored again: if it gets other bits,
as with another version of a library, so do all.
"""

import hashlib
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decdpo.data.cache import Cache
from decdpo.data.shard import PreferenceShard
from decdpo.errors import DataError
from decdpo.policies.lm.pace import Pace
from decdpo.policies.tokens import TokenizedPairs

WORK = "reference log-probabilities"
"""What is going on, for the lines of ``Pace``."""

KEEP_SECONDS = 5.0
"""Seconds after which what was computed is kept: a kill loses no more."""

_VALUE = struct.Struct("<8sddII")

Score = Callable[[np.ndarray], Tensor]
"""Returns (2, B) log-probabilities of the pairs (B,), by the reference."""


class Scorer(Protocol):
    """What scores pairs with a module: (2, B) log-probabilities of chosen and rejected answers."""

    def __call__(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor: ...


class FrozenReference:
    """A frozen model beside the policy, which scores the pairs of every batch again.

    scorer : of that model.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def scores(self, data: Any, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (B,) log pi_ref of the chosen and of the rejected answers of ``rows`` (B,)."""
        with torch.no_grad():
            chosen, rejected = self._scorer(data.tokens, rows)
        return chosen, rejected


class CachedReference:
    """Reference values that are computed once and kept beside the shards.

    digest : of what they depend on besides the tokens. rounding : of what this machine makes of a
    few fixed tokens, 8 bytes.

    computed : how many pairs have been scored so far because they were not kept.
    """

    def __init__(self, digest: str, rounding: bytes) -> None:
        self.computed = 0
        self._digest = bytes.fromhex(digest)
        self._rounding = rounding

    def scores(self, data: Any, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (B,) log pi_ref of the chosen and of the rejected answers of ``rows`` (B,)."""
        values: Tensor = data.reference
        chosen, rejected = values[:, torch.from_numpy(rows).to(values.device)]
        return chosen, rejected

    def fill(
        self, shard: PreferenceShard, tokens: TokenizedPairs, score: Score, pace: Pace
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return (2, N) float64 values of all pairs, the missing ones computed and kept; and notes.

        score : is called with one missing pair after another.

        Raises ``DataError`` for a value that is not finite, or if the file of the values is
        something else.
        """
        cache = shard.references
        keys = [self._key(tokens, row) for row in range(shard.num_pairs)]
        values, unlike = self._kept(cache, keys, tokens)
        known = np.flatnonzero(~np.isnan(values).any(axis=0))
        if known.size:
            longest = known[np.argmax(np.diff(tokens.edges[known][:, [0, -1]]))]
            if not np.array_equal(_scored(score, longest), values[:, longest]):
                values[:, known] = np.nan
                unlike += known.size
        missing = np.flatnonzero(np.isnan(values).any(axis=0))
        pace.begin(WORK)
        pace.skip(len(keys) - len(missing))
        self._compute(shard, tokens, keys, values, missing, score, pace)
        notes = cache.notes
        if unlike:
            notes = (
                f"agent {shard.agent}: the reference had scored {unlike:,} pairs on a "
                "machine, or with a library, that rounds differently: they were scored again",
                *notes,
            )
        return values, notes

    def _kept(
        self, cache: Cache, keys: Sequence[bytes], tokens: TokenizedPairs
    ) -> tuple[np.ndarray, int]:
        """Return what is kept, (2, N), NaN where nothing is; and how much was rounded otherwise."""
        values, unlike = np.full((2, len(keys)), np.nan), 0
        found = cache.find(keys)
        for row, key in enumerate(keys):
            kept = [_VALUE.unpack(v) for v in found.get(key, ()) if len(v) == _VALUE.size]
            # The newest, should it have been scored again.
            mine = [v[1:3] for v in kept if v[0] == self._rounding and _fits(v, tokens, row)][-1:]
            if mine:
                values[:, row] = mine[0]
            unlike += bool(kept) and not mine
        return values, unlike

    def _compute(
        self,
        shard: PreferenceShard,
        tokens: TokenizedPairs,
        keys: Sequence[bytes],
        values: np.ndarray,
        missing: np.ndarray,
        score: Score,
        pace: Pace,
    ) -> None:
        """Fill the columns ``missing`` of ``values`` (2, N), keeping what is done meanwhile."""
        fresh: list[tuple[bytes, bytes]] = []
        first: dict[bytes, int] = {}
        kept = time.monotonic()
        try:
            for row in missing:
                same = first.setdefault(keys[row], row)
                if same != row:
                    values[:, row] = values[:, same]
                    pace.step(1)
                    continue
                pair = _scored(score, row)
                if not np.isfinite(pair).all():
                    raise DataError(
                        f"agent {shard.agent}: the reference's log-probabilities of source row "
                        f"{shard.places[row]} are {pair[0]} and {pair[1]}",
                        "check the reference model and its precision",
                    )
                values[:, row] = pair
                value = _VALUE.pack(self._rounding, *pair, *_lengths(tokens, row))
                fresh.append((keys[row], value))
                self.computed += 1
                pace.step(1)
                if time.monotonic() - kept > KEEP_SECONDS:
                    # Out of the list first, should a signal come between.
                    done, fresh, kept = fresh, [], time.monotonic()
                    shard.references.add(done)
        finally:
            shard.references.add(fresh)

    def _key(self, tokens: TokenizedPairs, row: int) -> bytes:
        sha = hashlib.sha256(self._digest)
        parts = tokens.parts(row)
        sha.update(np.array([len(part) for part in parts], "<i8").tobytes())
        for part in parts:
            sha.update(np.ascontiguousarray(part, "<i4").tobytes())
        return sha.digest()


def _scored(score: Score, row: int) -> np.ndarray:
    """Return (2,) float64 values of the pair ``row``."""
    values: np.ndarray = score(np.array([row])).double().cpu().numpy()[:, 0]
    return values


def _lengths(tokens: TokenizedPairs, row: int) -> tuple[int, int]:
    _, chosen, rejected = tokens.parts(row)
    return len(chosen), len(rejected)


def _fits(value: tuple[Any, ...], tokens: TokenizedPairs, row: int) -> bool:
    """Say whether what was kept can be the values of a pair."""
    return bool(np.isfinite(value[1:3]).all()) and value[3:] == _lengths(tokens, row)


def rounding(scorer: Scorer, tokens: TokenizedPairs) -> bytes:
    """Return 8 bytes that differ between machines that compute log-probabilities differently.

    tokens : a few fixed pairs.
    """
    with torch.no_grad():
        pairs = [scorer(tokens, np.array([row])) for row in range(len(tokens.edges))]
    values = torch.cat(pairs, dim=1).double().cpu().numpy()
    return hashlib.sha256(values.tobytes()).digest()[:8]
