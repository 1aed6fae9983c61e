"""Trajectories in shards: how a sequence of (state, action) steps is written, and phi's file.

A control task with states 0 ... S-1 and actions 0 ... A-1 is stored in an ordinary shard: the
prompt is the first state, an answer is its steps in order, ``state:action`` separated by blanks:

    prompt "3"    chosen "3:1 0:0 7:2"    rejected "3:0 5:2 5:2"

Beside the shards lies the feature map phi, ``features.npy``: an (S, A, d) array of float64 in
NumPy's format (version 1.0, nothing pickled), whose [s, u] is phi(s, u). Anyone may write such
files; `decdpo synthesize trajectories` does.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from decdpo.data.shard import PreferenceShard
from decdpo.errors import DataError
from decdpo.files import open_regular, os_fault, replacing

FEATURES_FILE = "features.npy"
"""Name of the feature map in a folder of shards."""


def format_steps(states: Sequence[int], actions: Sequence[int]) -> str:
    """Write one trajectory, states (H,) and actions (H,), as the text of an answer."""
    return " ".join(f"{s}:{u}" for s, u in zip(states, actions, strict=True))


def read_answers(
    shard: PreferenceShard, num_states: int, num_actions: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Read all answers of a shard of N pairs, first the chosen and then the rejected ones.

    Returns for each of both (steps, lengths): steps (T, 2) int64, the (state, action) of the
    trajectories laid end to end, and lengths (N,) int64, their numbers of steps.

    Raises ``DataError`` naming the row for a text that is no trajectory, or a state or action
    outside [0, num_states) or [0, num_actions).
    """
    pairs = shard.pairs(np.arange(shard.num_pairs))
    sides = ([p.chosen for p in pairs], [p.rejected for p in pairs])
    chosen, rejected = (_read(shard, texts, num_states, num_actions) for texts in sides)
    return chosen, rejected


def _read(
    shard: PreferenceShard, texts: list[str], num_states: int, num_actions: int
) -> tuple[np.ndarray, np.ndarray]:
    parts = [text.split() for text in texts]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    steps = np.zeros((int(lengths.sum()), 2), dtype=np.int64)
    position = 0
    for row, part in enumerate(parts):
        for step in part:
            state, colon, action = step.partition(":")
            inside = state.isdecimal() and action.isdecimal() and bool(colon)
            if not (inside and int(state) < num_states and int(action) < num_actions):
                raise DataError(
                    f"agent {shard.agent}, source row {shard.places[row]}: {step[:40]!r} is"
                    f" no step of a task with {num_states} states and {num_actions} actions",
                    "answers must be steps state:action, such as '3:1 0:0'; see"
                    " `decdpo synthesize --help`",
                )
            steps[position] = int(state), int(action)
            position += 1
    return steps, lengths


def save_features(path: Path, features: np.ndarray) -> str:
    """Write phi (S, A, d) to a file, replacing it as a whole, and return its digest."""
    with replacing(path, mode=0o644) as temporary, temporary.open("wb") as file:
        np.save(file, np.ascontiguousarray(features, dtype="<f8"), allow_pickle=False)
    return features_digest(features)


def load_features(path: Path) -> np.ndarray:
    """Read phi (S, A, d) float64.

    Raises ``DataError`` if the file is missing, is no such array, or holds values not finite.
    """
    try:
        with open_regular(path) as file:
            features = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise os_fault(
            error,
            f"cannot read the feature map {path}",
            remedy="name the .npy file that holds phi(s, u), or use shards that have one",
            kind=DataError,
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not an array of NumPy: {error}", "write it anew") from None
    if features.ndim != 3 or features.dtype.kind not in "fiu" or not features.size:
        raise DataError(
            f"{path} holds {features.dtype} of shape {features.shape}",
            "a feature map is a real array of shape (states, actions, dimension)",
        )
    if not np.isfinite(features).all():
        raise DataError(f"{path} holds values that are not finite", "write it anew")
    return features.astype(np.float64)


def features_digest(features: np.ndarray) -> str:
    """Return the SHA-256 of a feature map: of its shape and its values as float64."""
    head = repr(features.shape).encode()
    return sha256(head + np.ascontiguousarray(features, dtype="<f8").tobytes()).hexdigest()
