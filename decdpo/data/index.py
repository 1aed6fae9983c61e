"""The table of contents of a folder of shards: index.json."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from decdpo.data.shard import PreferenceShard
from decdpo.errors import DataError
from decdpo.files import Malformed, checked, os_fault, parse_json, read_bytes, replacing

FORMAT = "decdpo-shards"
VERSION = 1
FILE_NAME = "index.json"

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Meta(pattern=r"^[^/\0]+$", min_length=1, max_length=255)]
"""A name in the folder of the shards, and no path out of it."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One agent's file.

    agent : id. name : what the agent stands for (a column's value), or "". file : name in the
    folder. digest : content digest. num_train, num_heldout : pairs. bytes : size of the texts.
    """

    agent: Count
    name: str
    file: FileName
    digest: Digest
    num_train: Count
    num_heldout: Count
    bytes: Count


@dataclass(frozen=True)
class ShardIndex:
    """What a sharding consists of; reading it opens no shard.

    folder : where it was loaded from. sharding : uuid of the sharding. seed, holdout, partition :
    as given to `decdpo shard`. prompt_format : of every shard. agents : entries by agent id.
    report : how the shards came about (see ``decdpo.data.report``).
    """

    folder: Path
    sharding: str
    seed: int
    holdout: Share
    partition: str
    prompt_format: str
    agents: Annotated[tuple[ShardEntry, ...], Meta(min_length=1)]
    report: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | str) -> "ShardIndex":
        """Read and verify ``folder``/index.json.

        Raises ``DataError`` if it is missing, foreign, edited, or of another version.
        """
        folder = Path(folder)
        path = folder / FILE_NAME
        remedy = "make the shards with `decdpo shard SOURCE --out FOLDER`"
        try:
            content = parse_json(read_bytes(path))
        except (FileNotFoundError, NotADirectoryError):
            missing = "no index.json in" if folder.is_dir() else "there is no folder"
            raise DataError(f"no shards: {missing} {folder}", remedy) from None
        except OSError as error:
            raise os_fault(
                error, f"{path} cannot be read", remedy=remedy, kind=DataError
            ) from error
        except ValueError as error:
            raise DataError(f"{path} cannot be read: {error}", remedy) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path} is not an index of decdpo shards", remedy)
        if content.get("version") != VERSION:
            raise DataError(
                f"{path} has version {content.get('version')}; this decdpo reads version {VERSION}",
                "make the shards again with this version of decdpo",
            )
        if content.pop("checksum", None) != _checksum(content):
            raise DataError(f"{path} was edited: it does not match its checksum", remedy)
        try:
            index = checked({**content, "folder": folder}, cls)
        except Malformed as fault:
            raise DataError(f"{path} is not an index of decdpo shards: {fault}", remedy) from None
        if [entry.agent for entry in index.agents] != list(range(len(index.agents))):
            raise DataError(f"{path} does not list the agents 0, 1, ... in order", remedy)
        return index

    def save(self) -> None:
        """Write index.json into ``folder``, replacing it as a whole."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        del content["folder"]
        # One trip through JSON, so that the checksum is of what a reader will see.
        content = json.loads(json.dumps(content))
        content["checksum"] = _checksum(content)
        with replacing(self.folder / FILE_NAME, mode=0o644) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @property
    def num_agents(self) -> int:
        """Number of agents that hold a shard."""
        return len(self.agents)

    @property
    def digest(self) -> str:
        """sha256 over the digests of all shards in agent order: names the data of a run."""
        return hashlib.sha256("\n".join(e.digest for e in self.agents).encode()).hexdigest()

    def open(self, agent: int) -> PreferenceShard:
        """Read and verify the shard of one agent; no other file is touched.

        Raises ``DataError`` if there is no such agent, or its file is missing, damaged or another.
        """
        if not 0 <= agent < self.num_agents:
            raise DataError(
                f"{self.folder} has shards for {self.num_agents} agents, none for agent {agent}",
                f"set agents.count to {self.num_agents} or less, or make more shards",
            )
        entry = self.agents[agent]
        path = self.folder / entry.file
        shard = PreferenceShard.open(path, entry.digest, agent=agent, sharding=self.sharding)
        if (shard.num_train, shard.num_heldout) != (entry.num_train, entry.num_heldout):
            raise DataError(
                f"{path} holds {shard.num_train} training and {shard.num_heldout} held-out pairs, "
                f"but {FILE_NAME} says {entry.num_train} and {entry.num_heldout}",
                "make the shards again with `decdpo shard`",
            )
        return shard


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
