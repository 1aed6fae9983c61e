"""What a bad input is, and the steps that make one out of the good files of a working folder."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@dataclass(frozen=True)
class Case:
    """One bad input: how to make it, the command, its exit status, and words of the message."""

    name: str
    words: str
    expect: tuple[str, ...]
    status: int = 2
    prepare: Callable[[], None] = lambda: None


def config(text: str) -> Callable[[], None]:
    """Return a step that writes ``bad.toml``: the good configuration with ``text`` after it."""
    return lambda: write("bad.toml", '[data]\nshards = "shards"\n' + text)


def write(name: str, text: str | bytes) -> None:
    """Write a file of the working folder."""
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)


def flip(path: str, where: float) -> None:
    """Flip one bit of a file, at a share of its length."""
    content = bytearray(Path(path).read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x10
    Path(path).write_bytes(content)


def cut(path: str, share: float = 0.5) -> None:
    """Cut a file to a share of its length."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(share * len(content))])


def swap(one: str, other: str) -> None:
    """Exchange two files."""
    first, second = Path(one).read_bytes(), Path(other).read_bytes()
    Path(one).write_bytes(second)
    Path(other).write_bytes(first)


def sparse(path: str, indices: list[int], indptr: list[int]) -> None:
    """Write a 2 x 2 matrix in scipy's format, with these indices, sound or not."""
    parts = {"indices": np.array(indices), "indptr": np.array(indptr), "format": np.array(b"csr")}
    np.savez(path, data=np.ones(len(indices)), shape=np.array([2, 2]), **parts)


def edit_json(path: str, key: str, value: object) -> None:
    """Change one key of a JSON file."""
    content = json.loads(Path(path).read_text())
    content[key] = value
    Path(path).write_text(json.dumps(content))


def before(path: str, count: int) -> str:
    """Return the first lines of a file."""
    return "".join(Path(path).read_text().splitlines(keepends=True)[:count])


def after(path: str, count: int) -> str:
    """Return the lines of a file after the first ones."""
    return "".join(Path(path).read_text().splitlines(keepends=True)[count:])


def forge_index(change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index of the shards, and its checksum with it."""
    content = json.loads(Path("shards/index.json").read_text())
    del content["checksum"]
    change(content)
    text = json.dumps(content, sort_keys=True)
    content["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    write("shards/index.json", json.dumps(content))


def forge_manifest(folder: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a checkpoint, and its checksum with it."""
    content = json.loads(Path(folder, "manifest.json").read_text())
    del content["sha256"]
    change(content)
    body = json.dumps(content, indent=1).removesuffix("\n}") + ",\n"
    checksum = hashlib.sha256(body.encode()).hexdigest()
    write(f"{folder}/manifest.json", f'{body} "sha256": "{checksum}"\n}}\n')


def forge_dataset(path: str, name: str, link: h5py.ExternalLink | None) -> None:
    """Put a link in the place of a dataset, or None: one that is declared without end."""
    with h5py.File(path, "r+") as file:
        shape, kind = file[name].shape, file[name].dtype
        del file[name]
        if link is None:
            file.create_dataset(name, (1 << 40, *shape[1:]), kind, chunks=True)
        else:
            file[name] = link


def rows(*records: dict[str, object]) -> str:
    """Return JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


PAIR = {"prompt": "p", "chosen": "a good answer", "rejected": "a bad one"}
TRAIN = "train bad.toml --out new"
NEWEST = "run/checkpoints/round_000004"


def both_checkpoints(harm: Callable[[str], None]) -> Callable[[], None]:
    """Return a step that harms every checkpoint of the run."""
    return lambda: [harm(str(path)) for path in Path("run/checkpoints").iterdir()] and None


def shard(agent: int) -> str:
    """Return the path of an agent's shard."""
    return str(next(Path("shards").glob(f"*{agent}.h5")))
