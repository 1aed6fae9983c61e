"""What a bad input is, and the steps that make one out of the good files of a working folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
