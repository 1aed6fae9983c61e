"""What may lie in the folder of a new run: nothing that training would write over or mistake.

Logs and scripts of a scheduler may, and what an earlier start left that was killed before its
first checkpoint. All else is somebody's, and is neither removed nor mixed with the run's own files.
"""

import re
from pathlib import Path

from decdpo.checkpoint.format import MANIFEST, OLD, REMOVING, WRITING, only_ours, round_of
from decdpo.errors import ConfigError

_HARMLESS = re.compile(
    r"\.lock|\.nfs\w*|\.DS_Store|halt|save|error\.txt"
    r"|.+\.(out|err|log|sh|slurm|sbatch|pbs|toml)|.+\.[oe]\d+([.-]\d+)?"
    r"|\.(config\.toml|run\.json)\.\d+\.tmp"
)
"""Locks, logs and scripts of schedulers, configurations, and what a killed start left half written.
"""
_TRACE = re.compile(r"process_\d{4,}\.json")


def require_room(out: Path) -> None:
    """Raise ``ConfigError`` if ``out`` holds a run, or what is not of the start of one.

    A run has begun once its config.toml is there, which is written after the first checkpoint.
    """
    if (out / "config.toml").exists():
        raise ConfigError(
            f"{out} already holds a run",
            f"continue it with `decdpo resume {out}`, or give another folder with --out",
        )
    if not out.is_dir():
        return
    foreign = sorted(entry.name for entry in out.iterdir() if not _may_stay(entry))
    if not foreign:
        return
    rest = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    if "checkpoints" in foreign and any((out / "checkpoints").glob(f"round_*/{MANIFEST}")):
        raise ConfigError(
            f"{out} holds checkpoints of an earlier run, but no config.toml",
            "give another folder with --out, or remove its checkpoints if nobody needs them",
        )
    raise ConfigError(
        f"{out} is not empty and no run: it holds {foreign[0]}{rest}",
        "give a new folder with --out",
    )


def _may_stay(entry: Path) -> bool:
    if entry.name == "checkpoints" and entry.is_dir():
        return all(_of_first_save(found) for found in entry.iterdir())
    if entry.name == "trace" and entry.is_dir():
        return all(_TRACE.fullmatch(found.name) for found in entry.iterdir())
    return _HARMLESS.fullmatch(entry.name) is not None


def _of_first_save(entry: Path) -> bool:
    """Say whether it is the checkpoint of round 0, or what was left of the attempt to write it."""
    if entry.name == ".probe":
        return True
    name = entry.name
    for prefix in (WRITING, OLD, REMOVING):
        name = name.removeprefix(prefix)
    return round_of(entry.with_name(name)) == 0 and only_ours(entry)
