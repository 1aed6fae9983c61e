"""Looks into a checkpoint from outside a run: what it holds, whether it is whole, its digests."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decdpo.checkpoint.format import MANIFEST, Damaged, Manifest, Part, committed, round_of
from decdpo.checkpoint.parts import check_part, open_part
from decdpo.checkpoint.state import digest, parameter_digest
from decdpo.errors import CheckpointError


@dataclass(frozen=True)
class Digests:
    """SHA-256 of one agent: of its parameters ``x`` as raw bytes, and of its whole state."""

    x: str
    state: str


def locate(path: Path, round: int | None = None, run: str = "") -> Path:
    """Return the folder of one checkpoint.

    ``path`` is a run folder, a folder of checkpoints, or a checkpoint; in the first two the one of
    ``round`` is meant, or the newest. run : id of the run whose checkpoints alone are taken there;
    empty for all. One that cannot be read may be of it. Raises ``CheckpointError`` if there is
    none.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder", "name a run folder or a checkpoint")
    if round_of(path) is not None or (path / MANIFEST).is_file():
        if round is not None and round_of(path) not in (None, round):
            raise CheckpointError(f"{path} is not the checkpoint of round {round}")
        return path
    inner = path / "checkpoints"
    found = committed(inner if inner.is_dir() else path)
    others = foreign(path, run)
    if round in others:
        raise CheckpointError(
            f"{others[round]} is of another run than {path}", "name the folder of that checkpoint"
        )
    found = {number: folder for number, folder in found.items() if number not in others}
    if not found:
        raise CheckpointError(f"{path}: there is no checkpoint", "name a run folder that has one")
    if round is None:
        return found[max(found)]
    if round not in found:
        present = ", ".join(map(str, found))
        raise CheckpointError(
            f"{path}: there is no checkpoint of round {round}; those of rounds {present} are kept",
            "take one of these with --round, or the newest without it",
        )
    return found[round]


def foreign(path: Path, run: str) -> dict[int, Path]:
    """Return the checkpoints by round that lie in the run folder ``path`` and are of another run.

    path : also its folder of checkpoints. run : id of the run; without one there are none.
    """
    inner = path / "checkpoints"
    if not run or round_of(path) is not None:
        return {}
    found = committed(inner if inner.is_dir() else path)
    return {round: folder for round, folder in found.items() if _run_of(folder) not in (None, run)}


def _run_of(folder: Path) -> str | None:
    """Return the id of a checkpoint's run, None if its manifest cannot be read."""
    try:
        return Manifest.read(folder).run
    except Damaged:
        return None


def verify(folder: Path) -> list[str]:
    """Read every byte of a checkpoint; return what is wrong with it, nothing if it is whole.

    A single flipped bit anywhere is found: the manifest carries its own SHA-256, and the CRC-32 of
    every part. What the parts say of themselves is compared with the manifest, too.
    """
    try:
        manifest = Manifest.read(folder)
    except Damaged as fault:
        return [fault.what]
    problems = []
    named = round_of(folder)
    if named is not None and named != manifest.round:
        problems.append(f"{folder} holds the checkpoint of round {manifest.round}")
    for part in manifest.parts:
        try:
            check_part(folder / part.file, part.bytes, part.crc32)
            _check_inside(folder, part, manifest.round)
        except Damaged as fault:
            problems.append(fault.what)
    expected = {MANIFEST, *(part.file for part in manifest.parts)}
    extra = sorted(entry.name for entry in folder.iterdir() if entry.name not in expected)
    return problems + [f"{folder / name} does not belong here" for name in extra]


def _check_inside(folder: Path, part: Part, round: int) -> None:
    with open_part(folder / part.file) as reader:
        if reader.round != round or reader.agents != tuple(sorted(part.agents)):
            raise Damaged(f"{folder / part.file} is the part of another checkpoint")
        for agent in reader.agents:
            reader.record(agent)


def digests(folder: Path) -> list[tuple[int, Digests]]:
    """Return every agent's digests in ascending order, whichever process wrote them.

    Raises ``Damaged`` if what it reads is not what was written.
    """
    found: dict[int, Digests] = {}
    for part in Manifest.read(folder).parts:
        check_part(folder / part.file, part.bytes, part.crc32)
        with open_part(folder / part.file) as reader:
            for agent in part.agents:
                record = reader.record(agent)
                if "x" not in record.tensors:
                    raise CheckpointError(f"{folder}: agent {agent} has no parameters x")
                found[agent] = Digests(parameter_digest(record.tensors["x"]), digest(record))
    return sorted(found.items())


def summary(folder: Path) -> dict[str, Any]:
    """Return what the manifest says, and the state of the first agent in words, as JSON values.

    Raises ``Damaged`` if the manifest or that agent's part cannot be read.
    """
    manifest = Manifest.read(folder)
    first = manifest.part_of(0)
    if not (folder / first.file).is_file():
        raise Damaged(f"{folder / first.file} is missing")
    with open_part(folder / first.file) as reader:
        structure, tensors, scalars = reader.contents(0)
    return {
        "path": str(folder),
        **asdict(manifest),
        "bytes": manifest.nbytes,
        "state": {"structure": structure, "tensors": tensors, "scalars": scalars},
    }
