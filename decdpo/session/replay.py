"""A run made again in one process from its configuration and its history, to be compared."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from decdpo import build
from decdpo.checkpoint.format import Manifest, read_manifest
from decdpo.checkpoint.inspect import digests, locate
from decdpo.checkpoint.state import Record, Snapshot, digest, restore
from decdpo.comm.history import HISTORY, MEAN, History
from decdpo.comm.replayed import ReplayedWorld
from decdpo.config import Config, policies, schema
from decdpo.config.pace import MeasuredPace, ReplayedPace
from decdpo.errors import CheckpointError
from decdpo.metrics.recorder import Metrics
from decdpo.recovery import Recovery
from decdpo.run import Agent, Run
from decdpo.session.adoption import mean_of_neighbours
from decdpo.session.job import Job
from decdpo.session.record import run_id
from decdpo.train import train


@dataclass(frozen=True)
class Replayed:
    """What came of it.

    round : rounds done. history : who was lost and when. agents : those that are left, each with
    whether its whole state has the same digest.
    """

    round: int
    history: History
    agents: Mapping[int, bool]

    @property
    def exact(self) -> bool:
        """Whether all are the same."""
        return all(self.agents.values())


class Unrecorded:
    """A monitor that measures nothing."""

    def begin(self, run: Run) -> None:
        """Do nothing."""

    def observe(self, round: int, run: Run, seconds: float) -> None:
        """Do nothing."""

    def sound(self, round: int, run: Run, *, last: bool) -> bool:
        """Say yes."""
        return True

    def changed(self, event: Mapping[str, Any], run: Run) -> None:
        """Do nothing."""

    def working(self, what: str) -> nullcontext[None]:
        """Return an empty context."""
        return nullcontext()

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Kept:
    """A store that keeps the states which agents were adopted from, in memory."""

    def __init__(self, history: History) -> None:
        begun = [change.joined.items() for change in history.changes]
        self._wanted = {(round, int(agent)) for joined in begun for agent, round in joined}
        self._states: dict[tuple[int, int], Record] = {}

    def due(self, done: int) -> bool:
        """Say whether an agent was adopted from the checkpoint after ``done`` rounds."""
        return any(round == done for round, _ in self._wanted)

    def save(self, done: int, agents: list[Agent]) -> None:
        """Keep the states that are wanted."""
        self.keep(done, agents)

    def keep(self, done: int, agents: list[Agent]) -> None:
        """Copy the states that are wanted, after ``done`` rounds."""
        states = {a.id: a.state for a in agents if (done, a.id) in self._wanted}
        for record in Snapshot().take(states) if states else ():
            self._states[done, record.agent] = record

    def put(self, done: int, agent: int, state: Any) -> None:
        """Fill ``state`` with that of ``agent`` after ``done`` rounds."""
        record = self._states[done, agent]

        def fill(name: str, tensor: Tensor) -> None:
            tensor.copy_(record.tensors[name])

        restore(state, record.structure, record.scalars, fill)

    def poll(self) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


class Readoption:
    """Makes the agents again that a recorded run has adopted. make : an agent at the start."""

    def __init__(self, history: History, make: Callable[[int], Agent], kept: Kept) -> None:
        self.made: dict[int, Agent] = {}
        self._history = history
        self._make = make
        self._kept = kept

    def __call__(self, run: Run, absent: Sequence[int], t: int) -> dict[int, tuple[int, int]]:
        """Return the agents that are adopted before round ``t``."""
        self.made = {}
        begun: dict[int, int] = {}
        for change in self._history.changes:
            if change.round == t:
                begun |= {int(agent): round for agent, round in change.joined.items()}
        for agent, round in sorted(begun.items()):
            made = self.made[agent] = self._make(agent)
            if round == MEAN:
                made.params.shared.copy_(mean_of_neighbours(run, agent, t).model)
            else:
                self._kept.put(round, agent, made.state)
        return {agent: (0, round) for agent, round in begun.items()}


def replay(
    job: Job, config: Config, out: Path, say: Callable[[str], None], round: int | None = None
) -> Replayed:
    """Train again up to the newest checkpoint of the run in ``out``, or that of ``round``.

    job : of one process. say : prints a line for each loss.

    Raises ``CheckpointError`` if there is no such checkpoint, or the run was given more agents
    before it.
    """
    folder = locate(out, round, run_id(out))
    manifest = read_manifest(folder)
    index = build.open_index(config)
    history = recorded(manifest, build.num_agents(config, index))
    require_one_graph(folder, history)
    world = ReplayedWorld(history)
    device = job.device(config.device, isinstance(config.policy, policies.CausalLM))
    if isinstance(config.staleness, schema.Arrival):
        late = schema.Replay(run=str(out), max_age=config.staleness.max_age)
        config = replace(config, staleness=late)
    if isinstance(config.pace, MeasuredPace):
        pace = ReplayedPace(run=str(out), normalise=config.pace.normalise)
        config = replace(config, pace=pace)
    config = replace(config, log=replace(config.log, tensorboard=False))
    ensemble = build.make_ensemble(config, world, index, device)
    layout = ensemble.objective.policy.layout
    exchange = build.make_exchange(config, world, ensemble.algorithm, layout, device)
    past = History(history.everybody)
    kept = Kept(history)
    kept.keep(0, ensemble.agents)

    def make(agent: int) -> Agent:
        grad = ensemble.agents[0].params.grad
        algorithm = ensemble.algorithm
        return build.make_agent(config, ensemble.objective, algorithm, index, agent, grad)

    recovery = Recovery(
        ensemble.schedule,
        past,
        note=lambda event, writes: None,
        say=say,
        adopt=Readoption(history, make, kept),
    )
    with TemporaryDirectory() as scratch:
        run = build.make_run(
            config, world, ensemble, exchange, kept, Path(scratch), 0, "none", recovery
        )
        assert isinstance(run.monitor, Metrics)
        run.monitor.close()
        run.monitor, run.num_rounds = Unrecorded(), manifest.round
        world.begin()
        train(run)
    found = {r.agent: digest(r) for r in Snapshot().take({a.id: a.state for a in run.agents})}
    saved = {agent: of.state for agent, of in digests(folder)}
    same = {agent: found.get(agent) == state for agent, state in saved.items()}
    return Replayed(manifest.round, history, same)


def require_one_graph(folder: Path, history: History) -> None:
    """Raise ``CheckpointError`` if a run was given more agents, and with them another graph."""
    for change in history.changes:
        if change.grown:
            raise CheckpointError(
                f"{folder} cannot be made again: agents {', '.join(change.joined)} were added "
                f"before round {change.round + 1}, and the configuration no longer says how the "
                "run was before",
                "replay checkpoints of a run that keeps its number of agents; other ranks and a "
                "resume are compared by `decdpo checkpoint digest`",
            )


def recorded(manifest: Manifest, num_agents: int) -> History:
    """Return the history of a run up to a checkpoint.

    num_agents : that the run began with.
    """
    return History.from_json(range(num_agents), manifest.extra.get(HISTORY))
