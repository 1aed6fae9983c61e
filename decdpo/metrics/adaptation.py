"""Few-shot adaptation: the personal part of a model, trained on a few pairs of somebody new.

    p <- p - eta dL/dp (s, p),    s fixed

s is the shared part that others have trained, p the personal part, which begins as every agent's
does. It is what a new user gets: nothing that is shared changes, and nothing leaves the user.
"""

import numpy as np
import torch

from decdpo.data.sampling import EpochSampler
from decdpo.losses.base import RunningLoss
from decdpo.params.flat import FlatParams
from decdpo.params.optim import Optimizer
from decdpo.params.restraint import suffix
from decdpo.policies.encoded import EncodedShard
from decdpo.policies.objective import Batch, Objective
from decdpo.rng import Stream, generator


def few_pairs(data: EncodedShard, count: int, seed: int, person: int) -> np.ndarray:
    """Return ``count`` training rows of a shard, or all it has; the first of any larger choice."""
    order = generator(seed, Stream.ADAPTATION, person).permutation(data.num_train)
    return np.sort(order[:count])


def beginning(objective: Objective, shared: FlatParams) -> FlatParams:
    """Return a new model (P,) of the shared part of ``shared`` and the personal start."""
    model = objective.policy.initial()
    model[: shared.layout.num_shared] = shared.shared
    return FlatParams(shared.layout, model)


def adapt(
    objective: Objective,
    optimizer: Optimizer,
    model: FlatParams,
    data: EncodedShard,
    rows: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    person: int = 0,
) -> None:
    """Train the personal part of ``model`` in place on the pairs ``rows`` (K,) of ``data``.

    steps : of the optimizer, on ``batch_size`` pairs each, or on all where there are no more.
    person : with ``seed`` the address of the random numbers by which batches are drawn.

    Raises ``NumericalError`` if a gradient is not finite.
    """
    if not len(rows):
        return
    own = slice(model.layout.num_shared, None)
    optimizer = suffix(optimizer, model.layout.num_shared)
    state = optimizer.init(model.data[own])
    running = None
    if isinstance(objective.loss, RunningLoss):
        running = torch.zeros(1, dtype=torch.float64)
    sampler = EpochSampler(seed, person, len(rows))
    size = min(batch_size, len(rows))
    for step in range(steps):
        taken = np.arange(size) if size == len(rows) else sampler.rows(step, size)
        next(objective.gradients([Batch(model, data, rows[taken], running)]))
        # Of its own suffix alone: weight decay would shrink what is shared, momentum would move it.
        optimizer.step(model.data[own], state, model.grad[own], lr)
