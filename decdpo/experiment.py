"""One experiment in its run folder: prepare it, restore it, train it, leave its page behind."""

import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

from decdpo import build
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.device import check_devices
from decdpo.comm.staleness import record_digest
from decdpo.comm.world import Exchange, World
from decdpo.config import Config
from decdpo.data.index import ShardIndex
from decdpo.data.storage import replacing
from decdpo.divergence import Diverged
from decdpo.endings import watching
from decdpo.errors import DataError, DecdpoError
from decdpo.evaluation import require_gradient
from decdpo.folder import naming, record_start, run_id, versions
from decdpo.launch import Job
from decdpo.metrics import RECORDS, Metrics
from decdpo.policies.base import Policy
from decdpo.policies.encoded import Tally, summed
from decdpo.records import Mark, keep_until
from decdpo.report.curves import plot_run, read_metrics
from decdpo.report.start import block, warnings
from decdpo.report.summary import summarize
from decdpo.resuming import why_rounds_matter
from decdpo.run import Agent, Schedule
from decdpo.starting import start_facts
from decdpo.trace import ChromeTrace
from decdpo.train import Ending, train

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

LEARNT = ("agents", "model", "model_config", "tokenizer", "data")
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
                fault = self.trace.fault.strerror
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
    and a checkpoint need only be of the same agents, model and data. trace : whether to keep a
    timeline. progress : how it shows how far it is, of ``progress.MODES``.
    """
    job.set_timeout(config.comm.timeout)
    index = job.together(lambda: build.open_index(config))
    count = job.together(lambda: build.num_agents(config, index))
    world = job.world(count, config.comm)
    device = job.together(lambda: job.device(config.device, config.policy.kind == "causal_lm"))
    check_devices(world, device, share_gpu=config.device.share_gpu)
    pairs = [entry.num_train for entry in index.agents[:count]]
    schedule = job.together(lambda: build.make_topology(config, pairs))
    # Shards differ in size, and a language model's reference scores every pair of its own.
    objective, algorithm, agents = job.together(
        lambda: build.make_agents(config, world, index, device, say=job.say),
        work="read their model and shards",
    )
    for line in notes(world, objective.policy, agents):
        job.say(line)
    if training:
        require_teaching(world, agents)
    layout = objective.policy.layout
    start = sha256(objective.policy.initial().float().cpu().numpy().tobytes()).hexdigest()
    names = {
        "agents": str(count),
        "model": f"{layout.digest[:16]} at {start[:16]}",
        "data": sha256("".join(e.digest for e in index.agents[:count]).encode()).hexdigest()[:16],
        "topology": schedule.digest[:16],
        **objective.policy.identity,
        **identity(config),
    }
    if training and config.staleness.kind == "replay" and config.staleness.run:
        folder = Path(config.staleness.run) / build.AGES
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
        lately=[*objective.policy.identity, *at_default(config)],
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
    lines = [line for _, of_agent in found.values() for line in of_agent]
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


class Checkpoints:
    """When the loop saves: every so many rounds, and at the end.

    extra : returns what is saved beside the states.
    """

    def __init__(self, store: CheckpointStore, every: int, last: int) -> None:
        self.store = store
        self.every = every
        self.last = last
        self.extra: Callable[[], dict[str, Any]] = dict

    def due(self, done: int) -> bool:
        """Say whether the state after ``done`` rounds is saved."""
        return done == self.last or (self.every > 0 and done % self.every == 0)

    def save(self, done: int, agents: list[Agent]) -> None:
        """Save the state after ``done`` rounds; the writing goes on in the background."""
        self.store.save(done, {agent.id: agent.state for agent in agents}, self.extra())

    def poll(self) -> None:
        """Raise if an earlier save has failed in the background."""
        self.store.poll()

    def flush(self) -> None:
        """Wait until every save is on disk. Collective."""
        self.store.flush()


def execute(job: Job, experiment: Experiment, next_round: int) -> Ending:
    """Train from ``next_round`` on, and write the run's files. Collective."""
    config, world, out = experiment.config, experiment.world, experiment.out
    if next_round == 0:
        require_gradient(world, experiment.objective, experiment.agents)
    if next_round == 0 or experiment.store.changed:
        # From here on there is always a checkpoint to resume from, of this very configuration.
        experiment.store.save(next_round, experiment.states(), experiment.store.extra)
        experiment.store.flush()
    if world.is_root:
        with replacing(out / "config.toml", mode=0o644) as path:
            path.write_text(config.to_toml(), encoding="utf-8")
    _write_facts(job, experiment, next_round)
    with naming("the run cannot go on", out):
        return _train(job, experiment, next_round)


def _train(job: Job, experiment: Experiment, next_round: int) -> Ending:
    """Run the loop, and leave the run's page behind. Collective."""
    config, world, out = experiment.config, experiment.world, experiment.out
    store = Checkpoints(experiment.store, config.checkpoint.every, config.run.rounds)
    run = build.make_run(
        config,
        world,
        experiment.schedule,
        experiment.exchange,
        experiment.objective,
        experiment.algorithm,
        experiment.agents,
        store,
        out,
        next_round,
        experiment.progress,
    )
    run.trace = experiment.trace
    assert isinstance(run.monitor, Metrics)
    store.extra = run.monitor.mark
    with watching(job, world, out, experiment.store):
        try:
            ending = train(run)
        except Diverged:
            # Its page shows how.
            _leave_page(job, experiment)
            raise
        finally:
            run.monitor.close()
    _leave_page(job, experiment)
    return ending


def _leave_page(job: Job, experiment: Experiment) -> None:
    if experiment.world.is_root:
        with naming("cannot write the page of the run", experiment.out):
            agents = experiment.world.num_agents
            write_page(experiment.out, experiment.config, agents, job.say)


def restore_records(job: Job, experiment: Experiment, done: int) -> None:
    """Cut the records of a run to those of the checkpoint loaded, after ``done`` rounds.

    Raises ``DataError`` on every process if they are not those that the checkpoint was saved with.
    Collective.
    """
    path = experiment.out / RECORDS
    mark = Mark.from_json(experiment.store.extra.get(RECORDS))

    def restore() -> None:
        if not job.is_root:
            return
        if mark is not None and mark.round and not path.exists():
            job.say(f"{path} is missing: the records begin anew after round {done}")
        keep_until(path, done, mark)

    job.together(restore)


def write_page(out: Path, config: Config, agents: int, say: Callable[[str], None]) -> None:
    """Write ``summary.txt`` and ``curves.png`` from the metrics of the run folder ``out``."""
    records = read_metrics(out / "metrics.jsonl")
    algorithm = config.algorithm.kind
    graph = f" on {config.topology.graph}" if config.topology is not None else ""
    title = f"{algorithm}{graph}, {agents} agents, {config.policy.kind}, {config.loss.kind}"
    facts = {
        "run": str(out),
        "data": config.data.shards,
        "rounds": f"{records[-1]['round'] if records else 0} of {config.run.rounds}",
    }
    (out / "summary.txt").write_text(summarize(records, facts, title), encoding="utf-8")
    try:
        plot_run(records, out / "curves.png", title)
    except DecdpoError as fault:
        say(f"no curves.png: {fault.what}")


def starting(experiment: Experiment, next_round: int) -> dict[str, Any]:
    """Return what a start from ``next_round`` says of itself. Collective."""
    return start_facts(
        experiment.world,
        experiment.config,
        experiment.objective.policy,
        experiment.schedule,
        experiment.exchange,
        experiment.agents,
        experiment.device,
        experiment.out,
        next_round,
    )


def _write_facts(job: Job, experiment: Experiment, next_round: int) -> None:
    """Say what starts, and write ``run.json``: that, versions, command, all starts. Collective."""
    start = starting(experiment, next_round)
    job.say("\n  ".join(["start", *block(start)]))
    for warning in warnings(start):
        job.say(f"warning: {warning}")
    here = {"host": platform.node(), "device": experiment.device}
    places = experiment.world.collect({i: here for i in experiment.world.local_agents})
    if not experiment.world.is_root:
        return
    facts = {
        "id": experiment.store.run,
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "first_round": next_round,
        "seed": experiment.config.run.seed,
        "processes": job.size,
        "agents": places,
        "versions": versions(),
        "names": dict(experiment.identity),
        "start": start,
    }
    record_start(experiment.out, facts)
