"""Where the agents of a study get their pairs: synthetic users, shards, or source files."""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from decdpo.data.index import FILE_NAME, ShardIndex
from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.sharding import Plan, make_shards
from decdpo.data.synthetic import Users, synthesize
from decdpo.errors import ConfigError


class Pairs(Protocol):
    """Preference pairs, dealt to agents anew for every seed of a study."""

    @property
    def text(self) -> bool:
        """Whether answers are texts, rather than columns of features."""
        ...

    def describe(self) -> str:
        """Return one line for the summary."""
        ...

    def shards(self, seed: int, room: Path) -> ShardIndex:
        """Return the shards of one seed, made in the folder ``room`` if they are not there."""
        ...


@dataclass(frozen=True)
class Synthetic:
    """Synthetic users; every seed has users of its own."""

    users: Users
    text = False

    def describe(self) -> str:
        """Return the kind of users and their numbers."""
        facts = {k: v for k, v in asdict(self.users).items() if k != "seed"}
        return f"synthetic {self.users.kind}: " + ", ".join(f"{k} {v}" for k, v in facts.items())

    def shards(self, seed: int, room: Path) -> ShardIndex:
        """Return the shards of the users of ``seed``."""
        users = replace(self.users, seed=seed)
        folder = room / f"{users.kind}-{users.sharding}"
        if not (folder / FILE_NAME).exists():
            synthesize(users, folder)
        return ShardIndex.load(folder)


@dataclass(frozen=True)
class Sharded:
    """Folders made by `decdpo shard` or `decdpo synthesize`, one for each seed in turn."""

    folders: tuple[Path, ...]

    @property
    def text(self) -> bool:
        """Whether the shards have texts, judged by the first."""
        return ShardIndex.load(self.folders[0]).agents[0].bytes > 0

    def describe(self) -> str:
        """Return the folders."""
        return "shards in " + ", ".join(map(str, self.folders))

    def shards(self, seed: int, room: Path) -> ShardIndex:
        """Return the folder whose turn it is."""
        return ShardIndex.load(self.folders[seed % len(self.folders)].absolute())


@dataclass(frozen=True)
class Sources:
    """Files of preference data, dealt out and held out by ``plan`` with every seed as its seed."""

    files: tuple[Path, ...]
    plan: Plan
    text = True

    def describe(self) -> str:
        """Return the files and the rule by which they are dealt out."""
        plan = self.plan
        rule = f"{plan.partition}, holdout {plan.holdout:g}"
        rule += f" by {plan.group}" if plan.group else ""
        names = ", ".join(file.name for file in self.files)
        return f"{names}: {plan.agents or 'all'} agents, {rule}"

    def shards(self, seed: int, room: Path) -> ShardIndex:
        """Return the shards of ``seed``; when they are made, say on stderr what is odd in them."""
        plan = replace(self.plan, seed=seed)
        about = [[str(f.absolute()), f.stat().st_size] for f in self.files]
        name = hashlib.sha256(json.dumps([about, asdict(plan)], default=str).encode()).hexdigest()
        folder = room / f"{self.files[0].name.split('.')[0]}-{name[:16]}"
        if not (folder / FILE_NAME).exists():
            index = make_shards(self.files, folder, plan)
            for doubt in index.report["doubts"]:
                if doubt["warning"]:
                    print(f"decdpo: seed {seed}: {doubt['what']}", file=sys.stderr, flush=True)
        return ShardIndex.load(folder)


def find(
    paths: tuple[Path, ...],
    *,
    agents: int | None,
    partition: str,
    holdout: float,
    group: str | None,
    columns: Columns | None = None,
) -> Pairs:
    """Return what ``paths`` hold: folders of shards, or source files to be dealt out.

    Raises ``ConfigError`` if they do not exist or are of both kinds.
    """
    kinds = {(path / FILE_NAME).is_file() for path in paths}
    for path in paths:
        if not path.exists() or (path.is_dir() and not (path / FILE_NAME).is_file()):
            raise ConfigError(
                f"--data {path}: there are no shards and no such file",
                "name folders that `decdpo shard` made, or files of preference data",
            )
    if len(kinds) > 1:
        raise ConfigError("--data names shards as well as source files", "name one kind")
    if kinds == {True}:
        return Sharded(paths)
    plan = Plan(partition, agents, holdout, group=group, columns=columns or Columns())
    return Sources(paths, plan)
