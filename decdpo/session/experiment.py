"""One experiment with its objects on this process: prepared, on every process alike."""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from decdpo import build
from decdpo.algorithms.base import Algorithm
from decdpo.checkpoint.format import newest_agents
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.device import check_devices
from decdpo.comm.history import HISTORY, History
from decdpo.comm.world import Exchange, World
from decdpo.config import Config
from decdpo.config.policies import CausalLM
from decdpo.data.index import ShardIndex
from decdpo.errors import DataError
from decdpo.files import naming, reason
from decdpo.policies.base import Policy
from decdpo.policies.encoded import Tally, summed
from decdpo.policies.objective import Objective
from decdpo.run import Agent, Schedule
from decdpo.session.identity import POLICY, at_default, identify, learnt, of_first
from decdpo.session.job import Job
from decdpo.session.record import run_id, versions
from decdpo.session.resuming import why_rounds_matter
from decdpo.trace import ChromeTrace


@dataclass
class Experiment:
    """A configuration with its objects, on this process; the loop's ``Run`` is made from it.

    redone : rounds that an earlier start had recorded after the checkpoint; the root knows.
    """

    config: Config
    out: Path
    index: ShardIndex
    world: World
    device: str
    ensemble: build.Ensemble
    identity: Mapping[str, str]
    exchange: Exchange | None
    store: CheckpointStore
    trace: ChromeTrace | None = None
    progress: str = "auto"
    redone: int = 0

    @property
    def history(self) -> History:
        """Which agents took part when, as the checkpoint that was loaded says."""
        everybody = range(build.num_agents(self.config, self.index))
        return History.from_json(everybody, self.store.extra.get(HISTORY))

    @property
    def schedule(self) -> Schedule:
        """The mixing weights of every round."""
        return self.ensemble.schedule

    @property
    def objective(self) -> Objective:
        """What the agents minimize."""
        return self.ensemble.objective

    @property
    def algorithm(self) -> Algorithm[Any]:
        """How the agents step and mix."""
        return self.ensemble.algorithm

    @property
    def agents(self) -> list[Agent]:
        """The agents of this process, ascending."""
        return self.ensemble.agents

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
    more: bool = False,
    trace: bool = False,
    progress: str = "auto",
) -> Experiment:
    """Make every object of an experiment, or fail on every process alike. Collective.

    id : of a new run; None is that of the run in ``out``, whose checkpoints alone are taken.
    training : whether it shall train; otherwise its run folder is only read, no exchange is made,
    a checkpoint need only be of the same agents, model and data, and its models are measured one
    after another (``measuring.models.saved_models``). more : whether agents that the checkpoint
    does not hold take part, too. trace : whether to keep a timeline. progress : how it shows how
    far it is, of ``progress.MODES``.
    """
    job.set_timeout(config.comm.timeout)
    index = job.together(lambda: build.open_index(config))
    agents: Sequence[int] = range(build.num_agents(config, index))
    if id is None and not more:
        agents = saved_agents(job, out, agents)
    world = job.world(
        agents,
        config.comm,
        survive=training and config.faults.on_loss != "abort",
    )
    device = job.together(lambda: job.device(config.device, isinstance(config.policy, CausalLM)))
    check_devices(world, device, share_gpu=config.device.share_gpu)
    # Shards differ in size, and a language model's reference scores every pair of its own.
    ensemble = job.together(
        lambda: build.make_ensemble(config, world, index, device, say=job.say, training=training),
        work="read their model and shards",
    )
    look_at(job, world, ensemble, training=training)
    names = identify(job, world, config, index, ensemble, training=training)
    exchange = None
    if training:
        layout = ensemble.objective.policy.layout
        exchange = build.make_exchange(config, world, ensemble.algorithm, layout, device)
    store = open_store(job, world, config, out, names, ensemble, index, id=id, training=training)
    timeline = job.together(lambda: start_trace(job, out)) if trace else None
    if exchange is not None and timeline is not None:
        exchange.trace = timeline
    return Experiment(
        config, out, index, world, device, ensemble, names, exchange, store, timeline, progress
    )


def saved_agents(job: Job, out: Path, agents: Sequence[int]) -> Sequence[int]:
    """Return those of ``agents`` that the newest checkpoint in ``out`` holds. Collective.

    Those that were lost before it was saved are not among them. All are returned if there is no
    checkpoint, or it holds others, too, as its store will say.
    """
    found = job.together(lambda: newest_agents(out / "checkpoints") if job.is_root else None)
    saved: list[int] | None = job.boot.collect({job.rank: found})[0]
    return saved if saved is not None and set(saved) <= set(agents) else agents


def look_at(job: Job, world: World, ensemble: build.Ensemble, *, training: bool) -> None:
    """Say what the user should know of model and data. Collective.

    Raises ``DataError`` on every process if it shall train, and nothing can be learnt.
    """
    for line in notes(world, ensemble.objective.policy, ensemble.agents):
        job.say(line)
    if training:
        require_teaching(world, ensemble.agents)


def open_store(
    job: Job,
    world: World,
    config: Config,
    out: Path,
    names: dict[str, str],
    ensemble: build.Ensemble,
    index: ShardIndex,
    *,
    id: str | None,
    training: bool,
) -> CheckpointStore:
    """Return the checkpoints of the run in ``out``, to be read only unless it trains. Collective.

    names : of ``identify``. id : of a new run, None for the one that is there.
    """
    compared = names if training else learnt(names)
    return CheckpointStore(
        out / "checkpoints",
        world=world,
        run=job.together(lambda: run_id(out)) if id is None else id,
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.keep_every,
        identity=compared,
        lately=[POLICY, *ensemble.objective.policy.identity, *at_default(config)],
        config=config.to_toml(),
        versions=versions(),
        warn=job.say,
        read_only=not training,
        reasons={"run.rounds": lambda saved, done: why_rounds_matter(config, saved, done)},
        as_saved=partial(of_first, compared, index),
    )


def start_trace(job: Job, out: Path) -> ChromeTrace:
    """Begin this process's timeline in the run folder; it is on disk however the job ends."""
    path = out / "trace" / f"process_{job.rank:04d}.json"
    with naming("cannot write the trace", path):
        timeline = ChromeTrace(path, job.rank, f"process {job.rank} on {platform.node()}")
    job.unfinished.append(timeline.settle)
    return timeline


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
