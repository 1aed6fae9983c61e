"""Scores, weights and features as the report states them, and the largest that may be sharded."""

from collections.abc import Callable
from typing import Any

import numpy as np

from decdpo.errors import DataError

LARGEST = float(np.finfo(np.float32).max) / 2
"""What float32, the policies' default type, can hold, with room for the difference of two."""

WIDE = 1000.0
"""Ratio of the largest weight to the smallest from which few pairs decide the loss."""


def require_held(columns: dict[str, np.ndarray], place: Callable[[int], str]) -> None:
    """Raise ``DataError`` naming the first number that a policy in float32 could not hold.

    columns : name -> (n,) or (n, d). place : from a pair to its source row, in words.
    """
    for name, values in columns.items():
        wrong = np.argwhere(~(np.abs(values) <= LARGEST))
        if len(wrong):
            at = tuple(wrong[0])
            column = f"{name}[{at[1]}]" if values.ndim > 1 else name
            raise DataError(
                f"{column} is {values[at]:g} in source row {place(int(at[0]))}, beyond "
                f"{LARGEST:.3g}: policies compute in float32",
                "scale this column down, or leave it out, and shard again",
            )


def scores(columns: dict[str, np.ndarray], used: np.ndarray) -> dict[str, Any] | None:
    """Return the ranges of the scores, and in how many pairs they contradict the preference."""
    if "score_chosen" not in columns or "score_rejected" not in columns:
        return None
    chosen, rejected = columns["score_chosen"][used], columns["score_rejected"][used]
    return {
        "pairs": len(chosen),
        "chosen": _range(chosen),
        "rejected": _range(rejected),
        "chosen_below": int((chosen < rejected).sum()),
        "equal": int((chosen == rejected).sum()),
    }


def weights(columns: dict[str, np.ndarray], used: np.ndarray) -> dict[str, Any] | None:
    """Return the range of the weights, and how many pairs of equal weight count as much.

    ``like_equal_pairs`` is (sum w)^2 / sum w^2, Kish's effective sample size.
    """
    if "weight" not in columns:
        return None
    weight = columns["weight"][used]
    scaled = weight / weight.max()
    return {
        "pairs": len(weight),
        **_range(weight),
        "like_equal_pairs": round(float(scaled.sum() ** 2 / (scaled**2).sum()), 1),
    }


def equal_features(columns: dict[str, np.ndarray], used: np.ndarray) -> list[int]:
    """Return the pairs whose answers have the same features."""
    if "chosen_features" not in columns:
        return []
    same = (columns["chosen_features"] == columns["rejected_features"]).all(axis=1)
    return np.flatnonzero(same & used).tolist()


def _range(values: np.ndarray) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }
