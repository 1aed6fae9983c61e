"""Pairs of ratings that differ enough: counted, numbered and drawn without being written out."""

from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-9
"""Part of a gap that ratings may miss it by: 8.1 - 5.1 is less than 3 in binary numbers."""


@dataclass(frozen=True)
class Gaps:
    """All pairs of two ratings of one block, the first by at least a gap above the second.

    Pair p is (``order[i]``, ``order[j]``) for one i and one j before it in the same block. Pairs
    of a block have consecutive numbers, and blocks follow each other in ascending order.

    order : (m,) ratings sorted by block and value. first : (m,) where the block of each begins.
    ends : (m,) pairs of all ratings up to this one as the higher.
    """

    order: np.ndarray
    first: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def upto(self, blocks: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return how many pairs the blocks before and up to each of ``last`` have.

        blocks : (m,) as given to ``gaps``. last : ascending blocks.
        """
        position = np.searchsorted(blocks[self.order], last, side="right")
        return np.concatenate([[0], self.ends])[position]

    def pairs(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the higher and the lower rating of some pairs, each as a row of the ratings."""
        higher = np.searchsorted(self.ends, numbers, side="right")
        before = np.concatenate([[0], self.ends])[higher]
        return self.order[higher], self.order[self.first[higher] + numbers - before]


def gaps(values: np.ndarray, blocks: np.ndarray, gap: float) -> Gaps:
    """Return the pairs of values of one block that are ``gap`` or more apart, equal ones never.

    values : (m,) float64. blocks : (m,) int. gap : 0 or more.
    """
    order = np.lexsort((values, blocks))
    value, block = values[order], blocks[order]
    first = np.searchsorted(block, block, side="left")
    most = np.minimum(value - gap * (1 - _ROUNDING), np.nextafter(value, -np.inf))
    # Values and the most that a lower one may be, sorted together: at a tie the value comes first.
    both = np.lexsort(
        (np.repeat([0, 1], len(value)), np.concatenate([value, most]), np.tile(block, 2))
    )
    is_value = both < len(value)
    below = np.empty(len(value), np.int64)
    below[both[~is_value] - len(value)] = np.cumsum(is_value)[~is_value]
    return Gaps(order, first, np.cumsum(below - first))


def drawn(total: int, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return ``most`` of the numbers 0 to ``total`` - 1, or all of them, in ascending order."""
    if most is None or total <= most:
        return np.arange(total)
    return np.sort(rng.choice(total, most, replace=False))
