"""The contract of a codec: a vector as bytes that travel, and back."""

from typing import Protocol

import torch
from torch import Tensor

from decdpo.errors import NumericalError


class Codec(Protocol):
    """A lossy encoding C of vectors, of a fixed number of bytes.

    A contraction (Koloskova, Stich and Jaggi, 2019, with omega for delta): for every vector x of
    normal numbers, E ||C(x) - x||^2 <= (1 - delta) ||x||^2. Chance is drawn from the codec's seed
    and the round, alike on every agent: then nothing of it has to travel, it is drawn once for all
    agents of a process, and equal vectors have equal codes.

    size : M, the values of a vector. dtype : of the values. nbytes : of a code. delta : the
    contraction constant, in (0, 1].
    """

    @property
    def size(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def delta(self) -> float: ...

    def encode(self, vector: Tensor, code: Tensor, round: int) -> None:
        """Write the code of ``vector`` (M,) of ``round`` into ``code`` (nbytes,) uint8.

        ``code`` begins at a multiple of 8 bytes, here and in ``add``. Raises ``NumericalError`` for
        a vector with a NaN or an infinity, or too large for the code.
        """
        ...

    def add(self, code: Tensor, target: Tensor, round: int, alpha: float = 1.0) -> None:
        """Add what ``code`` (nbytes,) of ``round`` stands for: target <- target + alpha C(x).

        target : (M,).
        """
        ...


def require_finite(values: Tensor) -> None:
    """Raise ``NumericalError`` if ``values`` holds a NaN or an infinity."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise NumericalError(
            f"a vector to be encoded has {int((~finite).sum())} NaN or infinite values",
            "lower optim.lr or algorithm.gamma, or set optim.clip_norm",
        )


def too_large(dtype: str) -> NumericalError:
    """Make the error for values that the code cannot hold."""
    return NumericalError(
        f"a vector to be encoded has values beyond the range of {dtype}",
        "lower optim.lr or algorithm.gamma, or choose the codec topk or randomk",
    )
