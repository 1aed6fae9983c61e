"""What `decdpo evaluate` and `decdpo export` share: reading a run that is not trained on."""

from collections.abc import Callable
from pathlib import Path

from decdpo.config import Config, parse_override
from decdpo.errors import ConfigError
from decdpo.session.record import read_run

TRAINING = ("optim", "algorithm", "staleness", "run", "log", "checkpoint")
"""Sections that say how a run trains; what has been trained does not depend on them any more."""


def read_measured(
    folder: Path,
    overrides: list[str],
    say: Callable[[str], None],
    *,
    unused: tuple[str, ...] = (),
) -> Config:
    """Return the configuration of a run folder with ``overrides`` applied, to measure its model.

    say : says what is remarkable. unused : sections besides ``TRAINING`` that would be ignored.

    Raises ``CheckpointError`` if it is not a run folder, ``ConfigError`` for an override that would
    be ignored.
    """
    config = read_run(folder, overrides, say)
    for override in overrides:
        section, key, _ = parse_override(override)
        if section in (*TRAINING, *unused):
            raise ConfigError(
                f"--set {override} would be ignored: {section}.{key} says how a run trains, and "
                "this one is only read",
                "leave it out; what has moved is named with --set data.shards=FOLDER, "
                "policy.model=FOLDER or device.kind=cpu",
            )
    return config
