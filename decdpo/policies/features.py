"""Feature differences between the two answers of a pair, as one sparse matrix per shard."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from math import log

import numpy as np
from scipy.sparse import csr_array

WORD = re.compile(r"\w+|[^\w\s]")
"""A word of the hashed features: a run of letters and digits, or one punctuation mark."""


def hashed_features(text: str, dimension: int, seed: int = 0) -> dict[int, float]:
    """Return the non-zero features of one answer, {column: value}, columns in [0, dimension).

    Lower-cased words and pairs of adjacent words, each hashed to a column and a sign (Weinberger et
    al., "Feature hashing for large scale multitask learning", 2009) with BLAKE2b, so that every
    machine agrees. A term that occurs c times counts 1 + ln c: repetition says little more.
    """
    words = WORD.findall(text.lower())
    terms = Counter(words)
    terms.update(f"{a} {b}" for a, b in zip(words, words[1:]))
    salt = seed.to_bytes(8, "little")
    features: dict[int, float] = {}
    for term, count in terms.items():
        code = int.from_bytes(blake2b(term.encode(), digest_size=8, salt=salt).digest(), "little")
        column, sign = (code >> 1) % dimension, 1 - 2 * (code & 1)
        features[column] = features.get(column, 0.0) + sign * (1 + log(count))
    return features


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

    def batch(self, rows: np.ndarray) -> "FeatureDifferences":
        """Return the rows (B,) as a new, smaller set of differences."""
        first, last = self.starts[rows], self.starts[rows + 1]
        spans = list(map(slice, first.tolist(), last.tolist()))
        starts = np.zeros(len(rows) + 1, dtype=np.intp)
        np.cumsum(last - first, out=starts[1:])
        columns = np.concatenate([self.columns[:0], *(self.columns[s] for s in spans)])
        values = np.concatenate([self.values[:0], *(self.values[s] for s in spans)])
        return FeatureDifferences(starts, columns, values, self.dimension)

    def margins(self, theta: np.ndarray) -> np.ndarray:
        """Return (N,) theta . dphi; each row is summed alone, so its bits ignore the others."""
        if len(self.starts) == 1:
            return np.zeros(0, dtype=theta.dtype)
        return np.add.reduceat(self.values * theta.take(self.columns), self.starts[:-1])

    def add_combination(self, coefficients: np.ndarray, out: np.ndarray) -> None:
        """Add sum_b coefficients_b dphi_b to ``out`` (P,), row by row in order."""
        counts = self.starts[1:] - self.starts[:-1]
        np.add.at(out, self.columns, self.values * np.repeat(coefficients, counts))


def collect(
    rows: Iterable[dict[int, float]], dimension: int, dtype: np.dtype
) -> FeatureDifferences:
    """Gather rows of {column: value} into one compressed matrix of ``dtype``; drops zeros."""
    counts, columns, values = [0], [np.zeros(0, np.intp)], [np.zeros(0, dtype)]
    for row in rows:
        kept = sorted((c, v) for c, v in row.items() if v) or [(0, 0.0)]
        counts.append(len(kept))
        columns.append(np.array([c for c, _ in kept], dtype=np.intp))
        values.append(np.array([v for _, v in kept], dtype=dtype))
    starts = np.cumsum(counts, dtype=np.intp)
    return FeatureDifferences(starts, np.concatenate(columns), np.concatenate(values), dimension)


def hashed_differences(
    answers: Iterable[tuple[str, str]], dimension: int, dtype: np.dtype, seed: int = 0
) -> FeatureDifferences:
    """Hash pairs of answers (chosen, rejected) into their feature differences."""

    def rows() -> Iterator[dict[int, float]]:
        for chosen, rejected in answers:
            row = hashed_features(chosen, dimension, seed)
            for column, value in hashed_features(rejected, dimension, seed).items():
                row[column] = row.get(column, 0.0) - value
            yield row

    return collect(rows(), dimension, dtype)


def column_differences(
    chosen: np.ndarray, rejected: np.ndarray, dtype: np.dtype
) -> FeatureDifferences:
    """Turn explicit feature columns, (N, P) of each answer, into their differences."""
    dense = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    num, dimension = dense.shape
    starts = np.arange(num + 1, dtype=np.intp) * dimension
    columns = np.tile(np.arange(dimension, dtype=np.intp), num)
    return FeatureDifferences(starts, columns, dense.astype(dtype).reshape(-1), dimension)
