"""An experiment on one page: TOML in, a frozen and fully checked ``Config``, TOML out."""

import dataclasses
import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from decdpo.config import schema
from decdpo.config.algorithms import AlgorithmSection
from decdpo.config.combinations import check_combinations, check_topology
from decdpo.config.lora import check_products
from decdpo.config.needs import check_faults, check_late, check_needs
from decdpo.config.numbers import check_numbers
from decdpo.config.options import coerce, listing, nearest
from decdpo.config.pace import EqualPace, Pace, check_pace
from decdpo.config.privacy import NoPrivacy, Privacy, check_privacy
from decdpo.config.schema import SECTIONS
from decdpo.config.steps import with_usual_steps
from decdpo.config.text import said, section_text
from decdpo.errors import ConfigError
from decdpo.files import os_fault, read_text

__all__ = ["Config", "load", "parse", "parse_override"]

OF_OTHERS = {
    "policy.max_prompt_length": "a prompt has no limit of its own: set policy.max_length; what is "
    "longer loses the start of its prompt, down to half of that, then the end of its answers",
}
"""Keys that other trainers have, or earlier versions had, and what there is instead."""


QUIET = {"pace": EqualPace(), "privacy": NoPrivacy()}
"""Sections that only few runs have, with what they are in all others."""


@dataclass(frozen=True)
class Config:
    """Every section of one experiment; ``topology`` is None where agents have no neighbours."""

    run: schema.Run
    agents: schema.Agents
    data: schema.Data
    policy: schema.Policy
    loss: schema.Loss
    algorithm: AlgorithmSection
    topology: schema.Topology | None
    staleness: schema.Lateness
    pace: Pace
    privacy: Privacy
    optim: schema.Optim
    checkpoint: schema.Checkpoint
    log: schema.Log
    device: schema.Device
    comm: schema.Comm
    faults: schema.Faults

    def to_toml(self, *, annotate: bool = False) -> str:
        """Return the effective configuration as TOML, with every key's meaning if ``annotate``.

        Sections in ``QUIET`` are left out at their default, unless the meanings are asked for.
        """
        values = {section.name: getattr(self, section.name) for section in fields(self)}
        return "\n".join(
            section_text(name, value, annotate)
            for name, value in values.items()
            if value is not None and (annotate or name not in QUIET or value != QUIET[name])
        )

    def sections(self) -> dict[str, str]:
        """Return the text of every section by name, on one line; empty if it does not apply."""
        values = {section.name: getattr(self, section.name) for section in fields(self)}
        return {
            name: ", ".join(f"{k} = {v}" for k, v in said(value)) if value else ""
            for name, value in values.items()
        }

    @property
    def graph(self) -> str:
        """The name of the graph; empty where agents have no neighbours."""
        return "" if self.topology is None else self.topology.graph

    @property
    def digest(self) -> str:
        """SHA-256 of the effective configuration."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()


def load(
    path: str | Path | None, overrides: Iterable[str] = (), *, reading: bool = False
) -> Config:
    """Read a TOML file (None: all defaults), apply ``section.key=value`` overrides, check it all.

    reading : for a run that is measured or exported, and not trained any more: what earlier
    versions trained with is taken then.

    Raises ``ConfigError`` naming the key, the value, the remedy and the nearest valid key.
    """
    text = ""
    if path is not None:
        try:
            text = read_text(path, "utf-8-sig")
        except OSError as fault:
            raise os_fault(
                fault,
                f"cannot read the configuration {str(path)!r}",
                remedy=f"{_other_files(Path(path))}; `decdpo config` prints one to start from",
                kind=ConfigError,
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not a text file", "give a TOML file") from None
    origin = "--set" if path is None else str(path)
    return parse(text, overrides, origin, reading=reading)


def _other_files(path: Path) -> str:
    """Return which configurations there are where ``path`` is not one."""
    folder = path if path.is_dir() else path.parent
    try:
        names = [file.name for file in folder.glob("*.toml")]
    except OSError:
        names = []
    close = "" if path.is_dir() else nearest(path.name, names)
    return f"give a TOML file{close}: {listing(folder, names, 'TOML file')}"


def parse(
    text: str,
    overrides: Iterable[str] = (),
    origin: str = "the configuration",
    *,
    reading: bool = False,
) -> Config:
    """Check TOML ``text`` with ``overrides`` applied; see ``load``."""
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        raise ConfigError(f"{origin} is not valid TOML: {fault}", "mend that line") from None
    for override in overrides:
        section, key, value = parse_override(override)
        *above, last = (section, *key.split("."))
        table = tree
        for depth, name in enumerate(above, 1):
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                where = ".".join(above[:depth])
                raise ConfigError(f"{where} in {origin} is not a section", f"write [{where}]")
        table[last] = value
    unknown = [name for name in tree if name not in SECTIONS]
    if unknown:
        raise ConfigError(
            f"[{unknown[0]}] in {origin} is not a section{nearest(unknown[0], SECTIONS)}",
            "the sections are " + ", ".join(SECTIONS),
        )
    built: dict[str, Any] = {}
    for name in SECTIONS:
        given: Any = tree.get(name, {})
        if name == "optim" and isinstance(given, Mapping):
            given = with_usual_steps(given, built["policy"])
        built[name] = _build(name, given, reading)
    if not built["algorithm"].neighbours:
        if tree.get("topology"):
            raise ConfigError(
                f"[topology] is given, but algorithm.kind = {built['algorithm'].kind!r} "
                "has no neighbours",
                "remove the section, or choose another algorithm",
            )
        built["topology"] = None
    config = Config(**built)
    check_combinations(config)
    if not reading:
        # What is sound to train with; a run that is only read has been trained.
        check_needs(config)
        check_numbers(config)
    check_late(config)
    check_products(config)
    check_pace(config)
    check_privacy(config)
    check_faults(config)
    if config.topology is not None:
        check_topology(config.topology)
    return config


def parse_override(text: str) -> tuple[str, str, Any]:
    """Split ``section.key=value``; the value is TOML, or else a plain string."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {text!r} is not an assignment", "write --set section.key=value")
    if "\n" in value:
        raise ConfigError(f"--set {text!r} is more than one line", "give --set once for each key")
    try:
        return section, key, tomllib.loads(f"v = {value}")["v"]
    except (ValueError, RecursionError):
        return section, key, value.strip()


def _build(section: str, table: Any, reading: bool) -> Any:
    """Make the dataclass of one section from its TOML table."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{section} = {table!r} is not a section", f"write [{section}]")
    schema = SECTIONS[section]
    if isinstance(schema, dict):
        kind = table.get("kind", next(iter(schema)))
        if not isinstance(kind, str) or kind not in schema:
            raise ConfigError(
                f"{section}.kind = {kind!r} is not known{nearest(str(kind), schema)}",
                "choose one of " + ", ".join(schema),
            )
        cls = schema[kind]
    else:
        cls = schema
    return _filled(section, table, schema, cls, reading)


def _filled(section: str, table: Any, schema: Any, cls: Any, reading: bool) -> Any:
    """Return ``cls`` with the values of ``table``; ``schema`` has all kinds of the section."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{section} = {table!r} is not a section", f"write [{section}]")
    known = {f.name: f for f in fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise _unknown_key(section, key, known, schema, cls)
        name, inner = f"{section}.{key}", type(known[key].default)
        if dataclasses.is_dataclass(inner):
            values[key] = _filled(name, value, inner, inner, reading)
        else:
            values[key] = coerce(name, known[key], value, reading=reading)
    return cls(**values)


def _unknown_key(
    section: str, key: str, known: Mapping[str, Any], schema: Any, cls: Any
) -> ConfigError:
    if isinstance(schema, dict):
        kind = next(name for name, candidate in schema.items() if candidate is cls)
        users = [n for n, c in schema.items() if key in {f.name for f in fields(c)}]
        if users:
            return ConfigError(
                f"{section}.{key} is not used by {section}.kind = {kind!r}",
                f"remove it, or choose {section}.kind = " + " or ".join(map(repr, users)),
            )
        where = f"{section} of kind {kind!r}"
    else:
        where = f"[{section}]"
    other = OF_OTHERS.get(f"{section}.{key}")
    if other:
        return ConfigError(f"{section}.{key} is not a key of {where}", other)
    return ConfigError(
        f"{section}.{key} is not a key of {where}{nearest(key, known)}",
        "the keys are " + ", ".join(known),
    )
