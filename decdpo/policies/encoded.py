"""What every encoded shard carries besides its features or tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.data.shard import PreferenceShard, SourceRows
from decdpo.errors import DataError


@dataclass(frozen=True)
class EncodedShard:
    """The columns of one agent's N pairs that the objective reads, whatever the policy.

    agent : the agent's id. num_train, num_heldout : training pairs are rows [0, num_train),
        held-out pairs the rest.
    weight : (N,) float64 weights of the pairs, scaled to mean one over the training pairs, or None
        if all count alike.
    score_gap : (N,) score of the chosen minus the rejected answer, or None.
    source_rows : (N,) where each pair came from, in words.
    notes : what the user should know about the encoding, such as what was cut.
    """

    agent: int
    num_train: int
    num_heldout: int
    weight: np.ndarray | None
    score_gap: Tensor | None
    source_rows: SourceRows
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
    shard: PreferenceShard, dtype: torch.dtype, device: torch.device, notes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the fields of ``EncodedShard``, as keyword arguments of a subclass.

    Scaled to mean one, weights keep the gradient of a batch an unbiased estimate of the gradient of
    the shard's weighted mean loss, and keep learning rates comparable between shards.

    Raises ``DataError`` if the weights of the training pairs are not finite, negative or all zero.
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
        weight = weight / trained.mean()
    gap = None
    if shard.score_gap is not None:
        gap = torch.from_numpy(shard.score_gap).to(device, dtype)
    return {
        "agent": shard.agent,
        "num_train": shard.num_train,
        "num_heldout": shard.num_heldout,
        "weight": weight,
        "score_gap": gap,
        "source_rows": shard.places,
        "notes": notes,
    }
