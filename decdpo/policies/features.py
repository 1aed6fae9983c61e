"""Feature differences between the two answers of a pair, as one sparse matrix per shard."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from math import log

import numpy as np
from scipy.sparse import csr_array

WORD = re.compile(r"\w+|[^\w\s]")
"""A word of the hashed features: a run of letters and digits, or one punctuation mark."""

TEXTS = 1 << 12
"""Answers whose features are kept at hand: where several answers to a prompt were compared, each of
them is in several pairs. Terms are not kept: to hash one takes no longer than to find it."""


class Hashing:
    """A hash function from terms to features, with a sign for each term.

    dimension : features are numbered 0 ... dimension - 1. seed : chooses the function. sparse : is
    ``features`` as two arrays, the columns and values (K,) of a text; remembers recent texts.

    Weinberger et al., "Feature hashing for large scale multitask learning", 2009, with BLAKE2b, so
    that every machine agrees.
    """

    def __init__(self, dimension: int, seed: int = 0) -> None:
        begun = blake2b(digest_size=8, salt=seed.to_bytes(8, "little"))

        def digest(term: str) -> bytes:
            one = begun.copy()
            one.update(term.encode())
            return one.digest()

        self.dimension = dimension
        self._digest = digest
        self.sparse = lru_cache(TEXTS)(self._sparse)

    def features(self, text: str) -> dict[int, float]:
        """Return the features of one answer, {column: value}; a value may be zero.

        The terms are lower-cased words and pairs of adjacent words. A term that occurs c times
        counts 1 + ln c: repetition says little more.
        """
        columns, values = self.sparse(text)
        return dict(zip(columns.tolist(), values.tolist()))

    def _sparse(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        words = WORD.findall(text.lower())
        terms = Counter(words)
        terms.update(map(" ".join, pairwise(words)))
        codes = np.frombuffer(b"".join(map(self._digest, terms)), "<u8")
        columns = ((codes >> 1) % self.dimension).astype(np.int64)
        values = np.fromiter(map(_weight, terms.values()), np.float64, len(terms))
        np.negative(values, out=values, where=(codes & 1).astype(bool))
        found = columns.tolist()
        if len(set(found)) == len(found):
            return columns, values
        features: dict[int, float] = {}
        for column, value in zip(found, values.tolist()):
            features[column] = features.get(column, 0.0) + value
        return np.array(list(features), dtype=np.int64), np.array(list(features.values()))


@lru_cache(1 << 12)
def _weight(count: int) -> float:
    """Return what a term counts that occurs ``count`` times."""
    return 1 + log(count) if count > 1 else 1.0


@dataclass(frozen=True)
class FeatureDifferences:
    """The N rows dphi = phi(x, y_w) - phi(x, y_l), compressed sparse, columns ascending.

    starts : (N + 1,) where each row begins in ``columns`` and ``values`` (nnz,). No row is empty:
    one without a difference stores a single zero, so that sums over rows need no special case.
    dimension : P, the number of columns.
    """

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    dimension: int

    @property
    def matrix(self) -> csr_array:
        """(N, P) the same numbers as a SciPy matrix, for the exact constants of the theory."""
        shape = (len(self.starts) - 1, self.dimension)
        return csr_array((self.values, self.columns, self.starts), shape=shape)

    @property
    def alike(self) -> np.ndarray:
        """(N,) whether both answers of a pair have the same features."""
        if len(self.starts) == 1:
            return np.zeros(0, dtype=bool)
        return ~np.logical_or.reduceat(self.values != 0, self.starts[:-1])

    def count(self, rows: np.ndarray) -> int:
        """Return how many values the rows (B,) hold together."""
        return int((self.starts.take(rows + 1) - self.starts.take(rows)).sum())

    def batch(self, rows: np.ndarray) -> "FeatureDifferences":
        """Return the rows (B,) as a new, smaller set of differences."""
        first = self.starts.take(rows)
        counts = self.starts.take(rows + 1) - first
        starts = np.zeros(len(rows) + 1, dtype=np.intp)
        counts.cumsum(out=starts[1:])
        places = np.repeat(first - starts[:-1], counts)
        places += np.arange(places.size)
        columns, values = self.columns.take(places), self.values.take(places)
        return FeatureDifferences(starts, columns, values, self.dimension)

    def margins(self, theta: np.ndarray) -> np.ndarray:
        """Return (N,) theta . dphi; each row is summed alone, so its bits ignore the others."""
        return self.row_sums(theta.take(self.columns))

    def row_sums(self, factors: np.ndarray) -> np.ndarray:
        """Return (N,) the sum over each row of its values times ``factors`` (nnz,)."""
        if len(self.starts) == 1:
            return np.zeros(0, dtype=factors.dtype)
        return np.add.reduceat(self.values * factors, self.starts[:-1])

    @classmethod
    def stacked(cls, some: Sequence["FeatureDifferences"]) -> "FeatureDifferences":
        """Return the rows of several, end to end."""
        sizes = np.cumsum([0, *(one.values.size for one in some)])
        starts = [one.starts[:-1] + size for one, size in zip(some, sizes)]
        return cls(
            np.concatenate((*starts, sizes[-1:])).astype(np.intp),
            np.concatenate([one.columns for one in some]),
            np.concatenate([one.values for one in some]),
            some[0].dimension,
        )

    def view(self, first: int, last: int) -> "FeatureDifferences":
        """Return the rows first ... last - 1, whose columns and values are views."""
        starts = self.starts[first : last + 1]
        held = slice(starts[0], starts[-1])
        return FeatureDifferences(
            starts - starts[0], self.columns[held], self.values[held], self.dimension
        )

    def scaled(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the values (nnz,) of the rows coefficients_b dphi_b."""
        counts = self.starts[1:] - self.starts[:-1]
        scaled: np.ndarray = self.values * np.repeat(coefficients, counts)
        return scaled

    def add_combination(self, coefficients: np.ndarray, out: np.ndarray) -> None:
        """Add sum_b coefficients_b dphi_b to ``out`` (P,), row by row in order."""
        np.add.at(out, self.columns, self.scaled(coefficients))


def hashed_differences(
    answers: Iterable[tuple[str, str]], hashing: Hashing, dtype: np.dtype
) -> FeatureDifferences:
    """Hash pairs of answers (chosen, rejected) into their feature differences."""
    columns, values, sizes = [np.zeros(0, np.int64)], [np.zeros(0)], []
    for chosen, rejected in answers:
        for answer, sign in ((chosen, 1.0), (rejected, -1.0)):
            found, counted = hashing.sparse(answer)
            columns.append(found)
            values.append(sign * counted)
        # With a zero of its own, no row is empty.
        columns.append(np.zeros(1, np.int64))
        values.append(np.zeros(1))
        sizes.append(sum(map(len, columns[-3:])))
    return _sum_rows(np.concatenate(columns), np.concatenate(values), sizes, hashing, dtype)


def _sum_rows(
    columns: np.ndarray, values: np.ndarray, sizes: list[int], hashing: Hashing, dtype: np.dtype
) -> FeatureDifferences:
    """Sort rows of ``sizes`` entries each, sum what shares a column, drop the zeros but one."""
    rows = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((columns, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    fresh = (np.diff(rows, prepend=-1) != 0) | (np.diff(columns, prepend=-1) != 0)
    first = np.flatnonzero(fresh)
    if first.size:
        rows, columns, values = rows[first], columns[first], np.add.reduceat(values, first)
    filled = np.bincount(rows[values != 0], minlength=len(sizes))
    kept = (values != 0) | ((filled[rows] == 0) & (np.diff(rows, prepend=-1) != 0))
    starts = np.searchsorted(rows[kept], np.arange(len(sizes) + 1)).astype(np.intp)
    columns, values = columns[kept].astype(np.intp), values[kept].astype(dtype)
    return FeatureDifferences(starts, columns, values, hashing.dimension)


def column_differences(
    chosen: np.ndarray, rejected: np.ndarray, dtype: np.dtype
) -> FeatureDifferences:
    """Turn explicit feature columns, (N, P) of each answer, into their differences."""
    dense = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    num, dimension = dense.shape
    starts = np.arange(num + 1, dtype=np.intp) * dimension
    columns = np.tile(np.arange(dimension, dtype=np.intp), num)
    return FeatureDifferences(starts, columns, dense.astype(dtype).reshape(-1), dimension)
