"""The layout of a checkpoint on disk, and its manifest.

::

    checkpoints/round_000400/       400 rounds are done, round 400 is the next to run
        part_0000.h5                the agents of one writing process
        part_0001.h5
        manifest.json               written last; size and CRC-32 of every part, SHA-256 of itself

Names that begin with a dot are work in progress: ``.writing-round_000400`` is not yet committed,
``.old-`` and ``.removing-`` are on their way out. Renaming the folder is the commit.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from decdpo.errors import CheckpointError
from decdpo.files import Malformed, checked, parse_json, read_bytes, reason, sync

FORMAT = "decdpo-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
WRITING, OLD, REMOVING = ".writing-", ".old-", ".removing-"
_PART = re.compile(r"part_\d{4,}\.h5")
_ROUND = re.compile(r"round_(\d{6,})")

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Damaged(CheckpointError):
    """A checkpoint that is incomplete or not what was written; an older one may still be good."""

    def __init__(self, what: str, remedy: str = "use another checkpoint of the run") -> None:
        super().__init__(what, remedy)


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint: its name, size in bytes, CRC-32 in hex, and its agents' ids."""

    file: Annotated[str, Meta(pattern=r"^part_[0-9]{4,}\.h5$")]
    bytes: Count
    crc32: Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]
    agents: Annotated[tuple[Count, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, and of which run.

    round : rounds completed, hence the next to run. serial : its number among the checkpoints of
    its run, from 1. agents : how many. parts : the files. identity : what must not change on
    resuming, by key.
    config : the text of the effective configuration. versions : of the libraries that wrote it.
    extra : what else the run wants back, as JSON. created : UTC time.
    run : id of the run, empty in checkpoints of earlier versions.
    """

    round: Count
    serial: Count
    agents: Count
    parts: tuple[Part, ...]
    identity: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    run: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)

    def part_of(self, agent: int) -> Part:
        """Return the part that holds ``agent``."""
        return next(part for part in self.parts if agent in part.agents)

    def to_bytes(self) -> bytes:
        """Return the file's content: JSON that ends with the SHA-256 of all before it."""
        return _seal({"format": FORMAT, "version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of the checkpoint ``folder``.

        Raises ``Damaged`` if it is missing, unreadable, changed or of another format.
        """
        path = folder / MANIFEST
        try:
            content = read_bytes(path)
        except FileNotFoundError:
            raise Damaged(f"{path} is missing: not a whole checkpoint") from None
        except OSError as fault:
            raise Damaged(f"{path} cannot be read: {reason(fault)}") from None
        try:
            found = parse_json(content)
            named, version = found.pop("format"), found.pop("version")
            found.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise Damaged(f"{path} is damaged: not the manifest of a checkpoint") from None
        if named != FORMAT or version != VERSION:
            raise Damaged(
                f"{path}: format {named!r} version {version!r}, expected {FORMAT!r} {VERSION}",
                "read it with the decdpo that wrote it",
            )
        if _seal({"format": FORMAT, "version": VERSION, **found}) != content:
            raise Damaged(f"{path} was changed: its own checksum does not fit")
        try:
            manifest = checked(found, cls)
        except Malformed as fault:
            raise Damaged(f"{path} is damaged: {fault}") from None
        held = sorted(agent for part in manifest.parts for agent in part.agents)
        if len(held) != manifest.agents or held != sorted(set(held)):
            raise Damaged(f"{path} is damaged: its parts do not hold every agent once")
        return manifest

    @property
    def held(self) -> list[int]:
        """The agents that the parts hold, ascending; those lost before are not among them."""
        return sorted(agent for part in self.parts for agent in part.agents)


def _seal(content: Mapping[str, Any]) -> bytes:
    body = json.dumps(content, indent=1).removesuffix("\n}") + ",\n"
    return f'{body} "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'.encode()


def round_name(round: int) -> str:
    """Return the folder name of the checkpoint of ``round``."""
    return f"round_{round:06d}"


def part_name(index: int) -> str:
    """Return the file name of the part of the ``index``-th process."""
    return f"part_{index:04d}.h5"


def round_of(folder: Path) -> int | None:
    """Return the round that a folder's name says, None if it is not a checkpoint's name."""
    match = _ROUND.fullmatch(folder.name)
    return int(match[1]) if match and round_name(int(match[1])) == folder.name else None


def only_ours(folder: Path) -> bool:
    """Say whether a folder holds nothing but the files of a checkpoint."""
    return folder.is_dir() and all(
        entry.name == MANIFEST or _PART.fullmatch(entry.name) for entry in folder.iterdir()
    )


def committed(folder: Path) -> dict[int, Path]:
    """Return the committed checkpoints in ``folder`` by round, ascending; skip all else."""
    found = {}
    if folder.is_dir():
        for entry in folder.iterdir():
            round = round_of(entry)
            if round is not None and entry.is_dir():
                found[round] = entry
    return dict(sorted(found.items()))


def commit(temporary: Path, final: Path) -> None:
    """Rename a finished checkpoint to its final name, replacing one of the same round."""
    old = final.with_name(OLD + final.name)
    if final.exists():
        remove(old)
        os.rename(final, old)
    os.rename(temporary, final)
    sync(final.parent)
    remove(old)


def discard(final: Path) -> None:
    """Remove a committed checkpoint so that a kill never leaves half of it under its name."""
    doomed = final.with_name(REMOVING + final.name)
    remove(doomed)
    os.rename(final, doomed)
    remove(doomed)


def remove(folder: Path) -> None:
    """Remove a folder if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def clean_up(folder: Path) -> None:
    """Remove what a killed process left in ``folder``, and undo a replacement cut in the middle."""
    for entry in sorted(folder.iterdir()):
        for prefix in (WRITING, OLD, REMOVING):
            name = entry.name.removeprefix(prefix)
            if name == entry.name or round_of(folder / name) is None:
                continue
            if prefix == OLD and not (folder / name).exists():
                os.rename(entry, folder / name)
            else:
                remove(entry)


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest; ``Damaged`` also if it is of another round than the folder's name says."""
    manifest = Manifest.read(folder)
    if manifest.round != round_of(folder):
        raise Damaged(f"{folder} holds the checkpoint of round {manifest.round}")
    return manifest


def newest_agents(folder: Path) -> list[int] | None:
    """Return the agents of the newest checkpoint in ``folder`` that can be read, None for none."""
    for path in reversed(committed(folder).values()):
        with suppress(Damaged):
            return read_manifest(path).held
    return None


def prepare(folder: Path) -> None:
    """Make the folder, check that it can be written, and remove what a kill left in it."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if new:
        sync(folder.parent)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()
    clean_up(folder)
