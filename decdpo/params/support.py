"""Where a gradient may differ from zero, noted beside it, so that a step may leave the rest alone.

A batch of hashed text touches a few hundred of 65,536 values. Its gradient is a dense vector like
any other, and every step may take it as one; but who knows where it lies spares the passes over
its zeros. The values that are touched are computed by the same operations, so that the bits are
the same either way.

The note holds only as long as nobody else writes the vector: torch counts changes in place, and a
note of an earlier count is void. Writing through ``Tensor.numpy()`` is not counted, so nothing is
taken for known before ``add_at``, which is one who notes, has written.
"""

import numpy as np
import torch
from torch import Tensor

NOWHERE = np.zeros(0, dtype=np.intp)
"""The support of a vector of zeros."""

SPARSE = 8
"""A vector of this many values for each of its places is worth a note."""


def support(vector: Tensor) -> np.ndarray | None:
    """Return the places (K,) outside which ``vector`` (P,) is zero, None if that is not known.

    A place may occur several times.
    """
    places = _noted(vector)
    # Of a vector that was cleared and is not noted since, nobody knows who has written into it.
    return places if places is not None and places.size else None


def clear(vector: Tensor) -> None:
    """Write zeros into ``vector`` (P,), only where it may differ from zero if that is known."""
    places = support(vector)
    if places is None:
        vector.zero_()
    else:
        vector.numpy()[places] = 0
    # Only memory of the host can be written past torch.
    _note(vector, NOWHERE if vector.device.type == "cpu" else None)


def add_at(vector: Tensor, places: np.ndarray, values: np.ndarray) -> None:
    """Add ``values`` (K,) to ``vector`` (P,) at ``places`` (K,), one after another, in place."""
    before = _noted(vector)
    np.add.at(vector.numpy(), places, values)
    if before is not None:
        after = np.concatenate((before, places)) if before.size else places
        _note(vector, after if after.size * SPARSE <= vector.numel() else None)


def touched(vector: Tensor) -> Tensor:
    """Return the values of ``vector`` where it may differ from zero, all if nobody knows where."""
    places = support(vector)
    if places is None:
        return vector
    return torch.from_numpy(vector.numpy().take(places))


def descend(x: Tensor, grad: Tensor, lr: float) -> None:
    """Take the plain step x <- x - lr g in place; x, g : (P,), finite.

    Where a value of g is zero, x stays as it is: so the places that g touches are enough.
    """
    places = support(grad)
    if places is None:
        x.add_(grad, alpha=-lr)
        return
    values = x.numpy()
    part = torch.from_numpy(values.take(places))
    part.add_(torch.from_numpy(grad.numpy().take(places)), alpha=-lr)
    values[places] = part.numpy()
    torch.autograd.graph.increment_version(x)


def _noted(vector: Tensor) -> np.ndarray | None:
    places, version = getattr(vector, "support", (None, -1))
    return places if version == vector._version else None


def _note(vector: Tensor, places: np.ndarray | None) -> None:
    setattr(vector, "support", (places, vector._version))
