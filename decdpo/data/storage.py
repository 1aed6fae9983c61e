"""The HDF5 file of one shard: its schema, its checksums, and writing that no kill can damage."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from decdpo import hdf5
from decdpo.errors import DataError
from decdpo.files import reason, replacing

FORMAT = "decdpo-shard"
VERSION = 1
PROMPT_FORMATS = ("plain", "hh", "messages")

COLUMNS: dict[str, tuple[str, int]] = {
    "text": ("u1", 1),
    "spans": ("<i8", 2),
    "source_row": ("<i8", 1),
    "source_file": ("<i4", 1),
    "source_file_names": ("u1", 1),
    "score_chosen": ("<f8", 1),
    "score_rejected": ("<f8", 1),
    "weight": ("<f8", 1),
    "user": ("<i4", 1),
    "user_names": ("u1", 1),
    "chosen_features": ("<f8", 2),
    "rejected_features": ("<f8", 2),
}
"""Dataset name -> element type and number of dimensions. The first three are always present."""

REQUIRED = ("text", "spans", "source_row")

# Large datasets start on a 1 MiB boundary; small shards (a thousand agents) must not be padded.
_ALIGNMENT = {"alignment_threshold": 1 << 20, "alignment_interval": 1 << 20}
_REMAKE = "make the shards again with `decdpo shard`, or restore the file from a copy"


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What a shard says about itself.

    sharding : uuid shared by all shards of one `decdpo shard`. agent : whose shard it is.
    num_train : pairs [0, num_train) are for training, the rest are held out.
    prompt_format : "plain", "hh" (transcript up to the last "Assistant:") or "messages"
        (JSON list of {role, content}).
    """

    sharding: str
    agent: int
    num_train: int
    prompt_format: str = "plain"


def content_digest(header: ShardHeader, columns: Mapping[str, tuple[str, Any, str]]) -> str:
    """Return the sha256 of a shard's schema, header and columns.

    columns : name -> (element type, shape, sha256 of the bytes).
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(header),
        "columns": {name: [kind, list(shape), sha] for name, (kind, shape, sha) in columns.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_shard(
    path: Path,
    header: ShardHeader,
    columns: Mapping[str, np.ndarray],
    text: Iterable[bytes],
    text_size: int,
) -> str:
    """Write one shard (mode 0600) and return its content digest.

    columns : the datasets of ``COLUMNS`` except ``text``. text : the UTF-8 bytes in parts, as many
    as ``text_size`` together, so that a shard larger than memory can be written.
    """
    digests: dict[str, tuple[str, Any, str]] = {}
    with replacing(path) as temporary:
        with h5py.File(temporary, "w", libver="latest", locking=False, **_ALIGNMENT) as file:
            dataset = file.create_dataset("text", (text_size,), "u1")
            sha, position = hashlib.sha256(), 0
            for part in text:
                dataset[position : position + len(part)] = np.frombuffer(part, np.uint8)
                sha.update(part)
                position += len(part)
            if position != text_size:
                raise ValueError(f"text of {position} bytes, not {text_size}")
            digests["text"] = ("u1", (text_size,), sha.hexdigest())
            dataset.attrs["sha256"] = sha.hexdigest()
            for name, values in columns.items():
                kind, ndim = COLUMNS[name]
                values = np.ascontiguousarray(values, dtype=kind)
                if values.ndim != ndim:
                    raise ValueError(f"column {name} has shape {values.shape}")
                dataset = file.create_dataset(name, data=values)
                digests[name] = (kind, values.shape, checksum(values))
                dataset.attrs["sha256"] = digests[name][2]
            digest = content_digest(header, digests)
            file.attrs.update(format=FORMAT, version=VERSION, digest=digest, **asdict(header))
    return digest


def read_shard(path: Path) -> tuple[ShardHeader, dict[str, np.ndarray], str]:
    """Read and verify a shard: its header, its columns (``text`` included) and its digest.

    Raises ``DataError`` saying whether the file is missing, foreign, truncated, of another version
    or edited.
    """
    with _opened(path) as (file, size):
        if "format" not in file.attrs or hdf5.attribute(file, "format") != FORMAT:
            raise DataError(f"{path} is an HDF5 file but not a shard of decdpo", _REMAKE)
        version = hdf5.whole(file, "version")
        if version != VERSION:
            raise DataError(
                f"{path} has shard version {version}; this decdpo reads version {VERSION}",
                "make the shards again with this version of decdpo",
            )
        header = ShardHeader(
            sharding=hdf5.text(file, "sharding"),
            agent=hdf5.whole(file, "agent"),
            num_train=hdf5.whole(file, "num_train"),
            prompt_format=hdf5.text(file, "prompt_format"),
        )
        columns: dict[str, np.ndarray] = {}
        digests: dict[str, tuple[str, Any, str]] = {}
        for name, (kind, ndim) in COLUMNS.items():
            dataset = hdf5.dataset(file, name, size)
            if dataset is None:
                if name in REQUIRED:
                    raise DataError(f"{path} is damaged: it has no dataset {name!r}", _REMAKE)
                continue
            if dataset.dtype != np.dtype(kind) or dataset.ndim != ndim:
                raise DataError(
                    f"{path} is damaged: {name} is {dataset.dtype} {dataset.shape}", _REMAKE
                )
            columns[name] = dataset[...]
            digests[name] = (kind, dataset.shape, checksum(columns[name]))
            if digests[name][2] != hdf5.text(dataset, "sha256"):
                raise DataError(
                    f"{path} is damaged or was edited: {name} does not match its checksum", _REMAKE
                )
        digest = content_digest(header, digests)
        if digest != hdf5.text(file, "digest"):
            raise DataError(
                f"{path} is damaged or was edited: its attributes do not match its digest", _REMAKE
            )
    return header, columns, digest


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, int]]:
    """Open a shard and yield it with its size; what cannot be read inside is a ``DataError``."""
    if not path.exists():
        raise DataError(
            f"there is no shard {path}",
            "make the shards with `decdpo shard`, or copy the missing file to this machine",
        )
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read by this user", "check the file's owner and mode")
    try:
        with hdf5.opened(path) as found:
            yield found
    except DataError:
        raise
    except (*hdf5.UNSOUND, IndexError) as error:
        if isinstance(error, OSError) and error.errno in hdf5.OF_THE_SYSTEM:
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EISDIR):
            raise DataError(f"{path} is no shard: {reason(error)}", _REMAKE) from error
        if "truncated" in why or path.stat().st_size == 0:
            raise DataError(f"{path} is truncated", _REMAKE) from error
        if "signature not found" in why:
            raise DataError(f"{path} is not an HDF5 file", _REMAKE) from error
        raise DataError(f"{path} is damaged: {why}", _REMAKE) from error


def checksum(values: np.ndarray) -> str:
    """Return the sha256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
