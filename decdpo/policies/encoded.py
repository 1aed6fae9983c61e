"""What every encoded shard carries besides its features or tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.data.shard import PreferenceShard, SourceRows
from decdpo.errors import DataError
from decdpo.policies.arrays import first_too_large


@dataclass(frozen=True)
class Tally:
    """How often something happened that the user should know of, while shards were encoded.

    count : of ``total`` pairs, prompts or answers. what : the rest of the sentence.
    """

    count: int
    total: int
    what: str

    def __str__(self) -> str:
        return f"{self.count:,} of {self.total:,} {self.what}"


def summed(tallies: Iterable[Tally]) -> list[Tally]:
    """Add up the tallies of several shards that say the same; leave out what counts nothing.

    A shard that met something nowhere has a tally of 0 of it, so that totals are of all shards.
    """
    found: dict[str, Tally] = {}
    for one in tallies:
        before = found.get(one.what, Tally(0, 0, one.what))
        found[one.what] = Tally(before.count + one.count, before.total + one.total, one.what)
    return [one for one in found.values() if one.count]


@dataclass(frozen=True)
class EncodedShard:
    """The columns of one agent's N pairs that the objective reads, whatever the policy.

    agent : the agent's id. num_train, num_heldout : training pairs are rows [0, num_train),
        held-out pairs the rest.
    weight : (N,) float64 weights of the pairs, scaled to mean one over the training pairs, or None
        if all count alike.
    score_gap : (N,) score of the chosen minus the rejected answer, or None.
    source_rows : (N,) where each pair came from, in words.
    alike : (N,) whether a pair's answers are equal to the policy, so that it teaches nothing.
    tallies : what the user should know about the encoding, such as how many answers were cut;
        those that count nothing included.
    notes : what else, of this agent alone.
    """

    agent: int
    num_train: int
    num_heldout: int
    weight: np.ndarray | None
    score_gap: Tensor | None
    source_rows: SourceRows
    alike: np.ndarray
    tallies: tuple[Tally, ...]
    notes: tuple[str, ...]

    @property
    def num_pairs(self) -> int:
        """N, training and held-out pairs together."""
        return self.num_train + self.num_heldout

    @property
    def train_rows(self) -> np.ndarray:
        """(num_train,) rows of the training pairs."""
        return np.arange(self.num_train)

    @property
    def heldout_rows(self) -> np.ndarray:
        """(num_heldout,) rows of the held-out pairs."""
        return np.arange(self.num_train, self.num_pairs)


def shard_columns(
    shard: PreferenceShard,
    dtype: torch.dtype,
    device: torch.device,
    alike: np.ndarray | None = None,
    tallies: tuple[Tally, ...] = (),
) -> dict[str, Any]:
    """Return the fields of ``EncodedShard``, as keyword arguments of a subclass.

    Scaled to mean one, weights keep the gradient of a batch an unbiased estimate of the gradient of
    the shard's weighted mean loss, and keep learning rates comparable between shards. ``alike`` is
    False everywhere by default.

    Raises ``DataError`` if the weights of the training pairs are not finite, negative, all zero or
    too large to be summed, or if ``dtype`` cannot hold a difference of scores.
    """
    weight = None
    if shard.weight is not None:
        weight = np.asarray(shard.weight, dtype=np.float64)
        trained = weight[: shard.num_train] if shard.num_train else weight
        if not np.isfinite(weight).all() or (weight < 0).any() or not trained.any():
            raise DataError(
                f"agent {shard.agent}: pair weights must be finite, non-negative, not all zero",
                "shard the source again with another weight column",
            )
        with np.errstate(over="ignore"):
            mean = trained.mean()
        if not np.isfinite(mean):
            row = int(weight.argmax())
            raise DataError(
                f"agent {shard.agent}: the weight {weight[row]:g} of source row "
                f"{shard.source_row[row]} is too large to be summed",
                "shard the source again with smaller weights",
            )
        weight = weight / mean
    gap = None
    if shard.score_gap is not None:
        require_held(shard, "the score difference", shard.score_gap, dtype)
        gap = torch.from_numpy(shard.score_gap).to(device, dtype)
    return {
        "agent": shard.agent,
        "num_train": shard.num_train,
        "num_heldout": shard.num_heldout,
        "weight": weight,
        "score_gap": gap,
        "source_rows": shard.places,
        "alike": np.zeros(shard.num_pairs, dtype=bool) if alike is None else alike,
        "tallies": tallies,
        "notes": (),
    }


def require_held(
    shard: PreferenceShard, what: str, values: np.ndarray, dtype: torch.dtype
) -> None:
    """Raise ``DataError`` naming the first of ``values``, (N,) or (N, d), that is too large.

    what : what the numbers are. dtype : the policy's type, which must hold them.
    """
    place = first_too_large(values, dtype)
    if place is None:
        return
    column = f" {place[1]} (counted from 0)" if len(place) > 1 else ""
    raise DataError(
        f"agent {shard.agent}: {what}{column} of source row {shard.source_row[place[0]]} is "
        f"{values[place]:g}, which {str(dtype).removeprefix('torch.')} cannot hold",
        "scale these numbers down in the source and shard it again, or set policy.dtype = "
        '"float64" if they fit that',
    )


def require_text(shard: PreferenceShard, reader: str, remedy: str) -> None:
    """Raise ``DataError`` if some pairs of a shard have no text, of which ``reader`` sees nothing.

    remedy : what to do if the shard has feature columns in place of texts.
    """
    blank = shard.blank
    if not blank.any():
        return
    row = int(blank.argmax())
    if shard.features is None:
        remedy = "shard a source that has texts"
    raise DataError(
        f"agent {shard.agent}: {int(blank.sum()):,} of {shard.num_pairs:,} pairs have no text "
        f"(the first is source row {shard.source_row[row]}), and {reader} sees nothing else",
        remedy,
    )
