"""An experiment on one page: TOML in, a frozen and fully checked ``Config``, TOML out."""

import dataclasses
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from decdpo.config import schema
from decdpo.config.algorithms import AlgorithmSection
from decdpo.config.lora import check_lora, check_products
from decdpo.config.needs import check_faults, check_late, check_needs
from decdpo.config.numbers import check_numbers
from decdpo.config.options import coerce, listing, nearest, options
from decdpo.config.personal import check_personal, check_rewards
from decdpo.config.policies import CausalLM, LogLinear
from decdpo.config.schema import SECTIONS, AdamW, Sgd
from decdpo.errors import ConfigError
from decdpo.files import os_fault, read_text
from decdpo.topology.names import RANDOM, options_used, weights_allowed

__all__ = ["Config", "load", "parse", "parse_override"]

OF_OTHERS = {
    "policy.max_prompt_length": "a prompt has no limit of its own: set policy.max_length; what is "
    "longer loses the start of its prompt, down to half of that, then the end of its answers",
}
"""Keys that other trainers have, or earlier versions had, and what there is instead."""

LANGUAGE_MODEL_DTYPES = ("float32", "bfloat16")
"""Types in which a language model may compute; what is trained is float32 in both."""


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
    optim: schema.Optim
    checkpoint: schema.Checkpoint
    log: schema.Log
    device: schema.Device
    comm: schema.Comm
    faults: schema.Faults

    def to_toml(self, *, annotate: bool = False) -> str:
        """Return the effective configuration as TOML, with every key's meaning if ``annotate``."""
        values = {section.name: getattr(self, section.name) for section in fields(self)}
        return "\n".join(
            _section_text(name, value, annotate)
            for name, value in values.items()
            if value is not None
        )

    def sections(self) -> dict[str, str]:
        """Return the text of every section by name, on one line; empty if it does not apply."""
        values = {section.name: getattr(self, section.name) for section in fields(self)}
        return {
            name: ", ".join(f"{k} = {v}" for k, v in _said(value)) if value else ""
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
    built = {name: _build(name, tree.get(name, {}), reading) for name in SECTIONS}
    if not built["algorithm"].neighbours:
        if tree.get("topology"):
            raise ConfigError(
                f"[topology] is given, but algorithm.kind = {built['algorithm'].kind!r} "
                "has no neighbours",
                "remove the section, or choose another algorithm",
            )
        built["topology"] = None
    config = Config(**built)
    _check_combinations(config, reading)
    check_needs(config)
    if not reading:
        check_numbers(config)
    check_late(config)
    check_products(config)
    check_faults(config)
    if config.topology is not None:
        _check_topology(config.topology)
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


def _check_combinations(config: Config, reading: bool) -> None:
    """Refuse combinations of values that cannot mean anything."""
    policy, optim = config.policy, config.optim
    if isinstance(policy, CausalLM):
        _check_language_model(policy)
    check_rewards(policy, config.loss.kind)
    if isinstance(policy, LogLinear) and policy.features == "columns":
        default = next(f.default for f in fields(policy) if f.name == "dimension")
        if policy.dimension != default:
            raise ConfigError(
                f"policy.dimension = {policy.dimension} is not used with policy.features = "
                "'columns': the shard's columns decide",
                "remove policy.dimension",
            )
    if config.loss.kind == "rdpo_length" and policy.kind == "loglinear":
        raise ConfigError(
            "loss.kind = 'rdpo_length' weighs the length of answers, but to policy.kind = "
            "'loglinear' each is one step",
            "choose loss.kind = 'dpo', or policy.kind = 'causal_lm'",
        )
    if isinstance(optim, AdamW) and len(optim.betas) != 2:
        raise ConfigError(f"optim.betas = {list(optim.betas)} has not two values", "give two")
    if isinstance(optim, Sgd) and optim.nesterov and not optim.momentum:
        raise ConfigError("optim.nesterov = true is ignored when optim.momentum = 0",
                          "set a momentum, or remove nesterov")
    if config.device.kind == "cuda" and policy.kind != "causal_lm":
        raise ConfigError(
            f"device.kind = 'cuda' is ignored by policy.kind = {policy.kind!r}, which computes on "
            "the CPU",
            "use device.kind = 'cpu' or 'auto'",
        )
    if config.device.kind == "cpu" and config.device.share_gpu:
        raise ConfigError("device.share_gpu = true is ignored when device.kind = 'cpu'",
                          "remove it, or use device.kind = 'cuda'")
    if config.device.staging == "device":
        _check_staging(config)
    default = next(f.default for f in fields(config.checkpoint) if f.name == "mtbf_hours")
    if config.checkpoint.mtbf_hours != default and not config.checkpoint.by_time:
        raise ConfigError(
            f"checkpoint.mtbf_hours = {config.checkpoint.mtbf_hours:g} is not used with "
            f"checkpoint.every = {config.checkpoint.every}",
            'remove it, or set checkpoint.every = "auto"',
        )


def _check_language_model(policy: CausalLM) -> None:
    """Refuse types that nothing is computed in, and limits that mean nothing."""
    if policy.dtype not in LANGUAGE_MODEL_DTYPES:
        raise ConfigError(
            f"policy.dtype = {policy.dtype!r} is not one that a language model is trained "
            f"in{nearest(policy.dtype, LANGUAGE_MODEL_DTYPES)}",
            "use 'float32', or 'bfloat16' for the arithmetic; parameters and moments are float32 "
            "in both",
        )
    if 0 < policy.max_length < 8:
        raise ConfigError(
            f"policy.max_length = {policy.max_length} is too small",
            "give 8 or more, or 0 for the default",
        )
    check_lora(policy.lora)
    check_personal(policy)


def _check_staging(config: Config) -> None:
    """Refuse GPU memory for messages where there is none, or a way that cannot carry it."""
    on_cpu = ""
    if config.device.kind == "cpu":
        on_cpu = "device.kind = 'cpu'"
    elif config.policy.kind != "causal_lm":
        on_cpu = f"policy.kind = {config.policy.kind!r}, which computes on the CPU"
    if on_cpu:
        raise ConfigError(f"device.staging = 'device' is ignored with {on_cpu}",
                          "remove it, or use device.staging = 'host'")
    if config.comm.transport == "window":
        raise ConfigError(
            "comm.transport = 'window' is memory of the host, where device.staging = 'device' has "
            "no messages",
            "use comm.transport = 'auto' or 'p2p', or device.staging = 'host'",
        )


def _check_topology(topology: schema.Topology) -> None:
    """Refuse an option that the chosen graph and weight rule would ignore, or that they lack."""
    used = options_used(topology.graph, topology.weights)
    for key in ("degree", "probability", "file"):
        if getattr(topology, key) and key not in used:
            raise ConfigError(
                f"topology.{key} is not used by topology.graph = {topology.graph!r} with "
                f"weights = {topology.weights!r}",
                f"remove topology.{key}",
            )
    if topology.seed and topology.graph not in RANDOM:
        raise ConfigError(
            f"topology.seed is not used by topology.graph = {topology.graph!r}: it is not random",
            "remove topology.seed",
        )
    if "file" in used and not topology.file:
        raise ConfigError(
            "topology.file is empty", "name an edge list, or a matrix as .npz or .csv"
        )
    if topology.weights not in weights_allowed(topology.graph):
        raise ConfigError(
            f"topology.weights = {topology.weights!r} cannot be used on graph {topology.graph!r}",
            "choose one of " + ", ".join(weights_allowed(topology.graph)),
        )


def _literal(value: Any) -> str:
    """Write one value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _section_text(name: str, section: Any, annotate: bool) -> str:
    # Under python -OO a dataclass has no docstring but its signature.
    written = sys.flags.optimize < 2
    summary = (type(section).__doc__ or "").strip().splitlines() if written else []
    lines = [f"# {summary[0]}"] if annotate and summary else []
    lines.append(f"[{name}]")
    ordered = sorted(fields(section), key=lambda f: f.name != "kind")
    below = []
    for f in ordered:
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            if annotate or value != f.default:
                below.append("\n" + _section_text(f"{name}.{f.name}", value, annotate))
            continue
        text = f"{f.name} = {_literal(value)}"
        if annotate:
            text = f"{text:<34}# {_meaning(name, f)}"
        lines.append(text)
    return "\n".join(lines) + "\n" + "".join(below)


def _said(section: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a section; of one within it only if it is not all defaults."""
    for field in fields(section):
        value = getattr(section, field.name)
        if not dataclasses.is_dataclass(value):
            yield field.name, value
        elif value != field.default:
            yield from ((key, item) for key, _, item in options(value, f"{field.name}."))


def _meaning(section: str, field: dataclasses.Field[Any]) -> str:
    schema = SECTIONS.get(section)
    doc = str(field.metadata["doc"])
    choices = field.metadata["choices"]
    if field.name == "kind" and isinstance(schema, dict):
        choices = tuple(schema)
    return f"{doc}: {', '.join(choices)}" if choices else doc
