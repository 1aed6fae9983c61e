"""Scores the pairs of shards with a reference model before any run, by all processes together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decdpo import build
from decdpo.config import Config, parse, parse_override
from decdpo.config.policies import CausalLM
from decdpo.data.cache import REFERENCE
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError, EnvironmentFault
from decdpo.policies.lm.pace import Pace
from decdpo.policies.lm.reference import CachedReference
from decdpo.session.job import Job

SECTIONS = ("policy", "device")
"""Sections of a run's configuration that reference values, or the time they take, depend on."""


def score_shards(job: Job, folder: Path, model: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Keep the tokens and reference values of all pairs in the folder of their shards. Collective.

    Every process scores each n-th pair of every shard; what is kept already is not scored again.

    model : folder of the model. overrides : "policy.KEY=VALUE" and "device.KEY=VALUE", as runs
    will have them.

    Returns what was done, on every process. Raises ``ConfigError`` for an override of another
    section, ``EnvironmentFault`` if nothing can be kept there.
    """
    config = job.together(lambda: _config(folder, model, overrides))
    index = job.together(lambda: ShardIndex.load(folder))
    device = job.together(lambda: job.device(config.device))
    found = job.together(
        lambda: _score(job, config, index, device), work="score pairs with the reference"
    )
    everything = job.boot.collect({job.rank: found})
    for note in dict.fromkeys(note for one in everything.values() for note in one["notes"]):
        job.say(note)
    return {
        "folder": str(folder),
        "reference": model,
        "pairs": sum(entry.num_train + entry.num_heldout for entry in index.agents),
        "scored": sum(one["scored"] for one in everything.values()),
        "file": str(folder / REFERENCE),
    }


def _config(folder: Path, model: str, overrides: Sequence[str]) -> Config:
    for override in overrides:
        section, key, _ = parse_override(override)
        if section not in SECTIONS or f"{section}.{key}" in ("policy.kind", "policy.model"):
            raise ConfigError(
                f"--set {override} would be ignored: reference values do not depend on it",
                "leave it out; what they depend on are keys of [policy] and [device]",
            )
    chosen = [f"data.shards={folder}", "policy.kind=causal_lm", f"policy.model={model}"]
    config = parse("", [*chosen, *overrides])
    assert isinstance(config.policy, CausalLM)
    if not config.policy.cache_reference:
        raise ConfigError("policy.cache_reference = false keeps nothing", "leave it out")
    return config


def _score(job: Job, config: Config, index: ShardIndex, device: str) -> dict[str, Any]:
    """Score this process's share of the pairs; return how many, and notes."""
    shards = [index.open(entry.agent) for entry in index.agents]
    parts = [shard.part(np.arange(job.rank, shard.num_pairs, job.size)) for shard in shards]
    say = job.say if job.is_root else None
    with Pace(say, sum(part.num_pairs for part in parts)) as pace:
        policy: Any = build.make_policy(config, None, device, pace)
        notes = list(policy.notes)
        for part in parts:
            notes += policy.encode(part).notes
            for kept in (part.tokens, part.references):
                if not kept.lasting:
                    raise EnvironmentFault(
                        kept.notes[-1], "make the folder of the shards writable, with room to spare"
                    )
    reference = policy.reference
    assert isinstance(reference, CachedReference)
    return {"scored": reference.computed, "notes": notes}
