"""The table of contents of a folder of shards: index.json."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decdpo.data.shard import PreferenceShard
from decdpo.data.storage import replacing
from decdpo.errors import DataError

FORMAT = "decdpo-shards"
VERSION = 1
FILE_NAME = "index.json"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One agent's file.

    agent : id. name : what the agent stands for (a column's value), or "". file : name in the
    folder. digest : content digest. num_train, num_heldout : pairs. bytes : size of the texts.
    """

    agent: int
    name: str
    file: str
    digest: str
    num_train: int
    num_heldout: int
    bytes: int


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
    holdout: float
    partition: str
    prompt_format: str
    agents: tuple[ShardEntry, ...]
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
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            missing = "no index.json in" if folder.is_dir() else "there is no folder"
            raise DataError(f"no shards: {missing} {folder}", remedy) from None
        except (ValueError, RecursionError, OSError) as error:
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
        del content["format"], content["version"]
        content["agents"] = tuple(ShardEntry(**entry) for entry in content["agents"])
        return cls(folder=folder, **content)

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
        return PreferenceShard.open(
            self.folder / entry.file, entry.digest, agent=agent, sharding=self.sharding
        )


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
