"""Where the files and folders are that a configuration names by relative paths.

A relative path starts where decdpo is run. A configuration is often used from elsewhere: then it is
looked for beside its file, and for a run where the run was started, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from decdpo.config import Config
from decdpo.config.options import changed, options, writable
from decdpo.config.policies import CausalLM
from decdpo.errors import ConfigError
from decdpo.files import read_checked, reason

CHAT_TEMPLATE = "chat_template"
"""A key whose value may also be the name of one of the tokenizer's templates."""


@dataclass(frozen=True)
class Start:
    """What is read here of one start of a run."""

    folder: Annotated[str, Meta(pattern=r"^[^\0]+$")] | None = None


@dataclass(frozen=True)
class Starts:
    """What is read here of run.json."""

    starts: tuple[Start, ...] = ()


def find_paths(
    config: Config, source: Path, say: Callable[[str], None], *, training: bool = True
) -> Config:
    """Return ``config`` with every path that is not here replaced by the place where it was found.

    source : the TOML file that it was read from. say : names every path found elsewhere.
    training : otherwise a recorded run is not needed, and not sought.

    Raises ``ConfigError``, naming every place looked at, if a path leads nowhere.
    """
    for section, key, value, otherwise in list(_paths(config)):
        if section in ("staleness", "pace", "privacy") and not training:
            continue
        if not value or Path(value).exists() or _is_of_hub(config, section, key):
            continue
        doubts: list[str] = []
        places = {} if Path(value).is_absolute() else dict(_places(source, doubts))
        folder = next((folder for folder in places if (folder / value).exists()), None)
        if folder is None and key == CHAT_TEMPLATE:
            continue
        if folder is None:
            raise _nowhere(f"{section}.{key}", value, places, doubts, otherwise)
        if not writable(str(folder / value)):
            raise ConfigError(
                f"{section}.{key} = {value!r} is {str(folder / value)!r}, {places[folder]}, a path "
                "that is not UTF-8: the run's files could not name it",
                "run decdpo from that folder, or rename the folder",
            )
        say(f"{section}.{key} = {value!r} is {folder / value}, {places[folder]}")
        found = changed(getattr(config, section), key, str(folder / value))
        config = replace(config, **{section: found})
    return config


def _paths(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """Yield section, key and value of every path, and what else can be done where there is none."""
    for section in fields(config):
        keys = getattr(config, section.name)
        for key, field, value in () if keys is None else options(keys):
            if field.metadata["path"]:
                yield section.name, key, str(value), str(field.metadata["absent"])


def _is_of_hub(config: Config, section: str, key: str) -> bool:
    """Say whether the name need not be a path, but may be that of a model on the hub."""
    policy = config.policy
    of_model = section == "policy" and not key.startswith("lora.")
    return of_model and isinstance(policy, CausalLM) and policy.allow_hub


def _places(source: Path, doubts: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield every folder in which to look besides the present one, and what it is.

    doubts : gets what is wrong with the record of the run's starts, if it cannot be read.
    """
    yield source.absolute().parent, f"beside {source}"
    record = source.parent / "run.json"
    try:
        starts = read_checked(record, Starts).starts
    except FileNotFoundError:
        return
    except (OSError, ValueError) as fault:
        doubts.append(f"{record}, which says where it was started, is damaged: {reason(fault)}")
        return
    for start in reversed(starts):
        if start.folder is not None:
            yield Path(start.folder), "where the run was started"


def _nowhere(
    key: str, value: str, places: dict[Path, str], doubts: list[str], otherwise: str
) -> ConfigError:
    looked = [f"{Path(value).absolute()}", *(f"{f / value} ({why})" for f, why in places.items())]
    remedy = f"name the place with --set {key}=/absolute/path"
    if places:
        remedy = f"run decdpo from the folder where {value} lies, or {remedy}"
    what = f"{key} = {value!r} is nowhere: there is no " + ", no ".join(looked)
    return ConfigError(
        "; ".join([what, *doubts]), f"{remedy}; {otherwise}" if otherwise else remedy
    )
