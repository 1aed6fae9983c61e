"""What makes a run the one it is: what its checkpoints are compared by before they are loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

from decdpo import build
from decdpo.comm.late.delays import record_digest
from decdpo.comm.world import World
from decdpo.config import Config
from decdpo.config.options import options
from decdpo.config.pace import ReplayedPace
from decdpo.config.privacy import DpSgd
from decdpo.config.schema import SECTIONS, Replay
from decdpo.data.index import ShardEntry, ShardIndex
from decdpo.pacing import RECORD
from decdpo.pacing import record_digest as pace_digest
from decdpo.session.job import Job

FREE_KEYS = {
    "run.rounds",
    "run.diverged_above",
    "data.shards",
    "policy.model",
    "policy.lora.adapter",
    "policy.chat_template",
    "policy.feature_map",
    "policy.activation_checkpointing",
    "policy.cache_reference",
    "policy.allow_hub",
    "topology.file",
    "staleness.run",
    "pace.run",
    "privacy.secret",
}
"""Keys that a resumed run may change freely; what they point to is compared by digest."""

POLICY = "policy_digest"
"""The key of ``Policy.digest`` in a run's identity."""

LEARNT = ("agents", "model", POLICY, "model_config", "tokenizer", "data")
"""What a checkpoint is read with, however it was trained and is measured."""

FREE_SECTIONS = {"agents", "checkpoint", "log", "device", "comm", "faults"}


def identify(
    job: Job,
    world: World,
    config: Config,
    index: ShardIndex,
    ensemble: build.Ensemble,
    *,
    training: bool,
) -> dict[str, str]:
    """Return what the run is of, by name; it is the same on every process. Collective.

    ensemble : before anything is loaded: its agents are where every agent begins. training :
    otherwise what only training reads is left out.

    Raises ``ConfigError`` on every process if they are not of the same run.
    """
    policy, first = ensemble.objective.policy, ensemble.agents[0]
    # Of all agents, also of those that are lost by now.
    count = build.num_agents(config, index)
    entries = index.agents[:count]
    start = sha256(first.params.data.float().cpu().numpy().data).hexdigest()
    names = {
        "agents": str(count),
        "model": f"{policy.layout.digest[:16]} at {start[:16]}",
        POLICY: policy.digest[:16],
        "data": data_digest(entries),
        "topology": ensemble.schedule.digest[:16],
        **policy.identity,
        **identity(config),
    }
    late = config.staleness
    if training and isinstance(late, Replay) and late.run:
        folder = Path(late.run) / build.AGES
        names["staleness.run"] = job.together(lambda: record_digest(folder, len(entries)))[:16]
    pace = config.pace
    if training and isinstance(pace, ReplayedPace):
        names["pace.run"] = job.together(lambda: pace_digest(Path(pace.run) / RECORD))[:16]
    if training and isinstance(config.privacy, DpSgd) and config.privacy.secret:
        # Sites have secrets of their own, and a run goes on with all of them.
        secret = job.together(lambda: build.secret_digest(config))
        found = set(world.collect(dict.fromkeys(world.local_agents, secret)).values())
        names["privacy.secret"] = sha256("".join(sorted(found)).encode()).hexdigest()[:16]
    world.require_same("the model, data and topology", json.dumps(names))
    return names


def data_digest(entries: Sequence[ShardEntry]) -> str:
    """Return what the shards of some agents are compared by."""
    return sha256("".join(entry.digest for entry in entries).encode()).hexdigest()[:16]


def of_first(names: Mapping[str, str], index: ShardIndex, count: int) -> dict[str, str]:
    """Return the identity ``names`` of more agents as that of the first ``count`` of them.

    Their graph is left out: it is another one, and what it is made from is compared by key.
    """
    found = {key: text for key, text in names.items() if key != "topology"}
    return {**found, "agents": str(count), "data": data_digest(index.agents[:count])}


def learnt(names: dict[str, str]) -> dict[str, str]:
    """Return the part of the identity that a model is measured with, however it was trained."""
    return {key: names[key] for key in LEARNT if key in names}


def identity(config: Config) -> dict[str, str]:
    """Return the configuration keys that a resumed run must not change unasked."""
    names = {}
    for section in fields(config):
        value = getattr(config, section.name)
        if value is None or section.name in FREE_SECTIONS:
            continue
        for key, _, item in options(value):
            name = f"{section.name}.{key}"
            if name not in FREE_KEYS or (
                name == "run.rounds" and config.optim.schedule == "cosine"
            ):
                names[name] = str(item)
    return names


def at_default(config: Config) -> list[str]:
    """Return the names of ``identity`` whose value is the default, which earlier versions had."""
    names = []
    for section in fields(config):
        value = getattr(config, section.name)
        kinds = SECTIONS[section.name]
        for key, field, item in () if value is None else options(value):
            first = next(iter(kinds)) if isinstance(kinds, dict) else None
            if item == (first if key == "kind" else field.default):
                names.append(f"{section.name}.{key}")
    return names
