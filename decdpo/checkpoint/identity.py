"""What must be the same for a run to be resumed from a checkpoint, and what may differ."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from decdpo.checkpoint.format import Manifest
from decdpo.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Identity:
    """The identity of a run as it is now, to be compared with the one that a checkpoint saved.

    values : in words or digests by key. agents : their ids, ascending. For the others see
    ``CheckpointStore``.
    """

    values: Mapping[str, str]
    agents: Sequence[int]
    lately: Collection[str]
    reasons: Mapping[str, Callable[[str, int], str]]
    read_only: bool
    warn: Callable[[str], None]

    def compare(self, folder: Path, manifest: Manifest, allow: Collection[str]) -> bool:
        """Say whether anything differs that may; ``CheckpointError`` if something else does.

        allow : keys that may differ. Raises ``ConfigError`` for an unknown one.
        """
        saved, now = manifest.identity, self.values
        if manifest.held != list(self.agents):
            raise CheckpointError(
                f"{folder} is of another run\n"
                f"  agents: saved {_named(manifest.held)}, now {_named(self.agents)}",
                "take as many agents as were saved",
            )
        new = {key for key in self.lately if key in now and key not in saved}
        keys = sorted((set(now) if self.read_only else {*saved, *now}) - new)
        known = sorted({*keys, *new, *(key.split(".")[0] for key in (*keys, *new))})
        for key in allow:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"--allow {key}: unknown key{hint}", f"use {', '.join(known)}")
        different = [key for key in keys if saved.get(key) != now.get(key)]
        refused = [k for k in different if k not in allow and k.split(".")[0] not in allow]
        unsaid = ", ".join(sorted(key for key in new if "." not in key))
        if unsaid and not refused:
            self.warn(f"{folder} was saved before runs kept their {unsaid}, which is not compared")
        if refused:
            lines = [
                f"  {key}: saved {saved.get(key, 'nothing')}, now {now.get(key, 'nothing')}"
                + self._reason(key, manifest)
                for key in refused
            ]
            flags = " ".join(f"--allow {key}" for key in refused)
            remedy = f"set it as it was saved, or pass {flags} if the change is meant"
            if self.read_only:
                remedy = (
                    "point to what it was trained with, by --set data.shards=FOLDER or "
                    "--set policy.model=FOLDER"
                )
            raise CheckpointError("\n".join([f"{folder} is of another run", *lines]), remedy)
        return bool(different)

    def _reason(self, key: str, manifest: Manifest) -> str:
        """Return why ``key`` may not differ, in brackets, or nothing."""
        if key not in self.reasons or key not in manifest.identity:
            return ""
        return f" ({self.reasons[key](manifest.identity[key], manifest.round)})"


def _named(agents: Sequence[int]) -> str:
    """Return how many agents there are, and which where they are not 0 ... n-1."""
    if list(agents) == list(range(len(agents))):
        return str(len(agents))
    return f"{len(agents)} (" + ", ".join(map(str, agents)) + ")"
