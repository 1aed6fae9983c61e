"""One experiment with its objects on this process: prepared, on every process alike."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from decdpo import build
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.delays import record_digest
from decdpo.comm.device import check_devices
from decdpo.comm.world import Exchange, World
from decdpo.config import Config
from decdpo.config.schema import CausalLM, Replay
from decdpo.data.index import ShardIndex
from decdpo.errors import DataError
from decdpo.files import naming, reason
from decdpo.policies.base import Policy
from decdpo.policies.encoded import Tally, summed
from decdpo.run import Agent, Schedule
from decdpo.session.folder import run_id, versions
from decdpo.session.job import Job
from decdpo.session.resuming import why_rounds_matter
from decdpo.trace import ChromeTrace

FREE_KEYS = {
    "run.rounds",
    "run.diverged_above",
    "data.shards",
    "policy.model",
    "policy.chat_template",
    "policy.feature_map",
    "policy.activation_checkpointing",
    "policy.cache_reference",
    "policy.allow_hub",
    "topology.file",
    "staleness.run",
}
"""Keys that a resumed run may change freely; what they point to is compared by digest."""

POLICY = "policy_digest"
"""The key of ``Policy.digest`` in a run's identity."""

LEARNT = ("agents", "model", POLICY, "model_config", "tokenizer", "data")
"""What a checkpoint is read with, however it was trained and is measured."""

FREE_SECTIONS = {"agents", "checkpoint", "log", "device", "comm"}


@dataclass
class Experiment:
    """A configuration with its objects, on this process; the loop's ``Run`` is made from it."""

    config: Config
    world: World
    out: Path
    index: ShardIndex
    schedule: Schedule
    exchange: Exchange | None
    objective: Any
    algorithm: Any
    agents: list[Agent]
    store: CheckpointStore
    device: str
    identity: Mapping[str, str]
    trace: ChromeTrace | None = None
    progress: str = "auto"

    def states(self) -> dict[int, Any]:
        """Return the local agents' states, which checkpoints hold."""
        return {agent.id: agent.state for agent in self.agents}

    def close(self) -> None:
        """Free the exchange and end the trace. Collective."""
        if self.exchange is not None:
            self.exchange.close()
        if self.trace is not None:
            self.trace.close()
            if self.trace.fault is not None:
                fault = reason(self.trace.fault)
                print(f"decdpo: the trace of process {self.trace.process} ends early: {fault}",
                      file=sys.stderr, flush=True)  # fmt: skip


def prepare(
    job: Job,
    config: Config,
    out: Path,
    *,
    id: str | None = None,
    training: bool = True,
    trace: bool = False,
    progress: str = "auto",
) -> Experiment:
    """Make every object of an experiment, or fail on every process alike. Collective.

    id : of a new run; None is that of the run in ``out``, whose checkpoints alone are taken.
    training : whether it shall train; otherwise its run folder is only read, no exchange is made,
    a checkpoint need only be of the same agents, model and data, and its models are measured one
    after another (``measured.saved_models``). trace : whether to keep a
    timeline. progress : how it shows how far it is, of ``progress.MODES``.
    """
    job.set_timeout(config.comm.timeout)
    index = job.together(lambda: build.open_index(config))
    count = job.together(lambda: build.num_agents(config, index))
    world = job.world(count, config.comm)
    device = job.together(lambda: job.device(config.device, isinstance(config.policy, CausalLM)))
    check_devices(world, device, share_gpu=config.device.share_gpu)
    pairs = [entry.num_train for entry in index.agents[:count]]
    schedule = job.together(lambda: build.make_topology(config, pairs))
    # Shards differ in size, and a language model's reference scores every pair of its own.
    objective, algorithm, agents = job.together(
        lambda: build.make_agents(config, world, index, device, say=job.say, training=training),
        work="read their model and shards",
    )
    for line in notes(world, objective.policy, agents):
        job.say(line)
    if training:
        require_teaching(world, agents)
    layout = objective.policy.layout
    # Nothing is loaded yet: this is where every agent begins.
    start = sha256(agents[0].params.data.float().cpu().numpy().data).hexdigest()
    names = {
        "agents": str(count),
        "model": f"{layout.digest[:16]} at {start[:16]}",
        POLICY: objective.policy.digest[:16],
        "data": sha256("".join(e.digest for e in index.agents[:count]).encode()).hexdigest()[:16],
        "topology": schedule.digest[:16],
        **objective.policy.identity,
        **identity(config),
    }
    late = config.staleness
    if training and isinstance(late, Replay) and late.run:
        folder = Path(late.run) / build.AGES
        names["staleness.run"] = job.together(lambda: record_digest(folder, count))[:16]
    world.require_same("the model, data and topology", json.dumps(names))
    exchange = None
    if training:
        exchange = build.make_exchange(config, world, algorithm, layout, device)
    store = CheckpointStore(
        out / "checkpoints",
        world=world,
        run=job.together(lambda: run_id(out)) if id is None else id,
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.keep_every,
        identity=names if training else {key: names[key] for key in LEARNT if key in names},
        lately=[POLICY, *objective.policy.identity, *at_default(config)],
        config=config.to_toml(),
        versions=versions(),
        warn=job.say,
        read_only=not training,
        reasons={"run.rounds": lambda saved, done: why_rounds_matter(config, saved, done)},
    )
    timeline = None
    if trace:
        timeline = job.together(lambda: start_trace(job, out))
        if exchange is not None:
            exchange.trace = timeline
    return Experiment(
        config,
        world,
        out,
        index,
        schedule,
        exchange,
        objective,
        algorithm,
        agents,
        store,
        device,
        names,
        timeline,
        progress,
    )


def start_trace(job: Job, out: Path) -> ChromeTrace:
    """Begin this process's timeline in the run folder; it is on disk however the job ends."""
    path = out / "trace" / f"process_{job.rank:04d}.json"
    with naming("cannot write the trace", path):
        timeline = ChromeTrace(path, job.rank, f"process {job.rank} on {platform.node()}")
    job.unfinished.append(timeline.settle)
    return timeline


def identity(config: Config) -> dict[str, str]:
    """Return the configuration keys that a resumed run must not change unasked."""
    names = {}
    for section in fields(config):
        value = getattr(config, section.name)
        if value is None or section.name in FREE_SECTIONS:
            continue
        for key, item in asdict(value).items():
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
        for field in () if value is None else fields(value):
            if getattr(value, field.name) == field.default and field.name != "kind":
                names.append(f"{section.name}.{field.name}")
    return names


def notes(world: World, policy: Policy, agents: Sequence[Agent]) -> list[str]:
    """Return what the user should know of model and data, one line a kind. Collective."""
    mine = {a.id: [[astuple(t) for t in a.data.tallies], list(a.data.notes)] for a in agents}
    found = world.collect(mine)
    tallies = summed(Tally(*fields) for one, _ in found.values() for fields in one)
    # What is true of the folder of the shards is said once.
    lines = dict.fromkeys(line for _, of_agent in found.values() for line in of_agent)
    return [*policy.notes, *map(str, tallies), *lines]


def require_teaching(world: World, agents: Sequence[Agent]) -> None:
    """Raise ``DataError`` if no training pair of any agent can teach anything. Collective."""
    mine = {a.id: [int(a.data.alike[a.data.train_rows].sum()), a.data.num_train] for a in agents}
    found = world.collect(mine).values()
    alike, pairs = (sum(counts) for counts in zip(*found))
    fault = None
    if pairs and alike == pairs:
        fault = DataError(
            f"the answers of all {pairs} training pairs are equal to the policy: there is nothing "
            "to learn",
            "check which columns were taken as the two answers, and what policy.max_length cuts",
        )
    world.require(fault)
