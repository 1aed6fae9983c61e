"""What must be the same for a run to be resumed from a checkpoint, and what may differ."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from decdpo.checkpoint.format import Manifest
from decdpo.errors import CheckpointError, ConfigError

COUNT = "agents.count"
"""The key to allow for a run that goes on with more agents than were saved."""
CALLED = {"agents": COUNT}
"""Keys that a user allows by another name, that of the configuration."""


@dataclass(frozen=True)
class Identity:
    """The identity of a run as it is now, to be compared with the one that a checkpoint saved.

    values : in words or digests by key. agents : their ids, ascending. as_saved : takes a number
    of agents, and returns what the values would be of the first so many alone, as far as that can
    be known. For the others see ``CheckpointStore``.
    """

    values: Mapping[str, str]
    agents: Sequence[int]
    lately: Collection[str]
    reasons: Mapping[str, Callable[[str, int], str]]
    read_only: bool
    warn: Callable[[str], None]
    as_saved: Callable[[int], Mapping[str, str]] | None = None

    def compare(self, folder: Path, manifest: Manifest, allow: Collection[str]) -> bool:
        """Say whether anything differs that may; ``CheckpointError`` if something else does.

        allow : keys that may differ. Raises ``ConfigError`` for an unknown one.
        """
        saved, now = self._comparable(manifest)
        more = self._newcomers(folder, manifest, allow)
        new = {key for key in self.lately if key in now and key not in saved}
        keys = sorted((set(now) if self.read_only else {*saved, *now}) - new)
        called = {CALLED[key] for key in keys if key in CALLED}
        known = sorted({*keys, *new, *called, *(key.split(".")[0] for key in (*keys, *new))})
        for key in allow:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"--allow {key}: unknown key{hint}", f"use {', '.join(known)}")
        different = [key for key in keys if saved.get(key) != now.get(key)]
        refused = [key for key in different if not _allowed(key, allow)]
        unsaid = ", ".join(sorted(key for key in new if "." not in key))
        if unsaid and not refused:
            self.warn(f"{folder} was saved before runs kept their {unsaid}, which is not compared")
        if refused:
            lines = [
                f"  {key}: saved {saved.get(key, 'nothing')}, now {now.get(key, 'nothing')}"
                + self._reason(key, manifest)
                for key in refused
            ]
            flags = " ".join(f"--allow {CALLED.get(key, key)}" for key in refused)
            remedy = f"set it as it was saved, or pass {flags} if the change is meant"
            if self.read_only:
                remedy = (
                    "point to what it was trained with, by --set data.shards=FOLDER or "
                    "--set policy.model=FOLDER"
                )
            raise CheckpointError("\n".join([f"{folder} is of another run", *lines]), remedy)
        return bool(different) or more

    def _comparable(self, manifest: Manifest) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return what was saved, and what is now, of as many agents if these are more."""
        saved, now = manifest.identity, self.values
        before, count = saved.get("agents", ""), now.get("agents", "")
        if self.as_saved is None or not before.isdigit() or int(before) >= int(count or 0):
            return saved, now
        fewer = self.as_saved(int(before))
        saved = {key: text for key, text in saved.items() if key in fewer or key not in now}
        return saved, {**fewer, "agents": count}

    def _newcomers(self, folder: Path, manifest: Manifest, allow: Collection[str]) -> bool:
        """Say whether there are agents that were not saved; ``CheckpointError`` if none may be."""
        held, agents = set(manifest.held), set(self.agents)
        if held == agents or (held < agents and _allowed("agents", allow)):
            return held != agents
        remedy = "take as many agents as were saved"
        if not self.read_only:
            remedy += f", or more of them with --allow {COUNT}"
        raise CheckpointError(
            f"{folder} is of another run\n"
            f"  agents: saved {_named(manifest.held)}, now {_named(self.agents)}",
            remedy,
        )

    def _reason(self, key: str, manifest: Manifest) -> str:
        """Return why ``key`` may not differ, in brackets, or nothing."""
        if key not in self.reasons or key not in manifest.identity:
            return ""
        return f" ({self.reasons[key](manifest.identity[key], manifest.round)})"


def _allowed(key: str, allow: Collection[str]) -> bool:
    """Say whether ``key`` may differ: by its name, that of its section, or what a user calls it."""
    return bool({key, key.split(".")[0], CALLED.get(key, key)} & set(allow))


def _named(agents: Sequence[int]) -> str:
    """Return how many agents there are, and which where they are not 0 ... n-1."""
    if list(agents) == list(range(len(agents))):
        return str(len(agents))
    return f"{len(agents)} (" + ", ".join(map(str, agents)) + ")"
