"""What the policies that compute with NumPy share: their types, references and files."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import PolicyError
from decdpo.files import replacing
from decdpo.losses.base import PairScores

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parameter_dtype(name: str) -> torch.dtype:
    """Return the type called ``name``; ``PolicyError`` if these policies cannot have it."""
    if name not in DTYPES:
        raise PolicyError(f"dtype = {name!r}", "choose 'float32' or 'float64'")
    return DTYPES[name]


def reference_vector(reference: np.ndarray | None, size: int, dtype: str) -> np.ndarray:
    """Return the reference (P,) of a policy with P = ``size``; None stands for zeros.

    Raises ``PolicyError`` if it has another shape, or a value that is not finite or too large.
    """
    start = np.zeros(size) if reference is None else np.asarray(reference)
    if start.shape != (size,) or first_too_large(start, DTYPES[dtype]) is not None:
        raise PolicyError(f"the reference must be {size} finite values that {dtype} can hold")
    return start.astype(dtype)


def first_too_large(values: np.ndarray, dtype: torch.dtype) -> tuple[int, ...] | None:
    """Return the place of the first of ``values`` that ``dtype`` cannot hold, None if it can all.

    A value that is not finite counts as too large.
    """
    wrong = ~(np.abs(values) <= torch.finfo(dtype).max)
    if not wrong.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))


class Side(Protocol):
    """One of the two answers of N pairs: length (N,) in steps, reference (N,) log pi_ref(y|x)."""

    @property
    def length(self) -> Tensor: ...

    @property
    def reference(self) -> np.ndarray: ...


class SideReference:
    """The reference values of a shard with two ``Side``s, computed when it was encoded."""

    def scores(self, data: Any, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (B,) log pi_ref of the chosen and of the rejected answers of ``rows`` (B,)."""
        first: Side = data.chosen
        second: Side = data.rejected
        return torch.from_numpy(first.reference[rows]), torch.from_numpy(second.reference[rows])


def reference_digest(kind: str, start: np.ndarray, *facts: object) -> str:
    """Return the SHA-256 of a policy's reference (P,) and of the ``facts`` its scores depend on."""
    sha = hashlib.sha256(json.dumps([kind, start.dtype.str, *facts]).encode())
    sha.update(np.ascontiguousarray(start).tobytes())
    return sha.hexdigest()


def pair_logps(
    reference: SideReference,
    data: Any,
    rows: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
) -> PairScores:
    """Join log pi (B,) of both answers of the pairs ``rows`` with what their shard knows of them.

    reference : of the policy. data : an ``EncodedShard`` with two ``Side``s, ``chosen`` and
    ``rejected``.
    """
    index = torch.from_numpy(rows)
    return PairScores(
        torch.from_numpy(chosen),
        torch.from_numpy(rejected),
        *reference.scores(data, rows),
        data.chosen.length[index],
        data.rejected.length[index],
        None if data.score_gap is None else data.score_gap[index],
    )


def write_npz(out: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> Path:
    """Write named arrays to the file ``out``, atomically; ``.npz`` is added where it is missing.

    Returns the path.
    """
    path = Path(out)
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    with replacing(path, mode=0o644) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path
