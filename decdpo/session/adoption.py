"""Taking over the agents of lost processes, from what is left of them.

An adopted agent begins from the newest checkpoint that holds it; without one, from the mean of its
neighbours' models. Where a server averages, all agents begin a round at one model, and so does an
adopted one. It goes on with its own shard, which must be readable where it then lives.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from decdpo import build
from decdpo.algorithms.base import Needs
from decdpo.checkpoint.format import committed, read_manifest
from decdpo.checkpoint.parts import open_part
from decdpo.comm.history import MEAN
from decdpo.comm.world import World
from decdpo.errors import DecdpoError
from decdpo.files import reason
from decdpo.metrics.beginning import Beginning, mean_beginning, of_factors
from decdpo.run import Agent, Run
from decdpo.session.experiment import Experiment
from decdpo.topology.row import Mixing

FAILED = -2
"""What a process answers for an agent that it could not take over."""


class Adoption:
    """Makes the agents of lost processes again, here or on another process; called on all alike.

    say : prints a line.
    """

    def __init__(self, experiment: Experiment, say: Callable[[str], None]) -> None:
        self._experiment = experiment
        self._say = say
        self._given_up: set[int] = set()
        self.made: dict[int, Agent] = {}

    def look(self) -> None:
        """Say at the start whose shards could not be read by another process. Collective."""
        world = self._experiment.world
        everybody = self._experiment.history.everybody
        seen = world.collect({i: self._readable(everybody) for i in world.local_agents[:1]})
        alone = [
            agent
            for agent in world.members.agents
            if not any(
                agent in readable
                for first, readable in seen.items()
                if world.members.rank_of(first) != world.members.rank_of(agent)
            )
        ]
        if alone and len(seen) > 1:
            self._say(
                f"warning: the shards of agents {', '.join(map(str, alone))} can be read by no "
                "other process: these agents would be lost, not adopted"
            )

    def __call__(self, run: Run, absent: Sequence[int], t: int) -> dict[int, tuple[int, int]]:
        """Make the ``absent`` agents again. Collective.

        Returns for each adopted agent its process and the round of the checkpoint that it begins
        from, or ``MEAN``; the same on every process. Their states are in ``made``.
        """
        world = run.world
        wanted = [agent for agent in absent if agent not in self._given_up]
        if not wanted:
            return {}
        self.made = {}
        home = self._assign(world, wanted)
        mine = [agent for agent, rank in home.items() if rank == _rank(world)]
        outcomes = {agent: self._make(run, agent) for agent in mine}
        gathered = world.collect({world.local_agents[0]: list(outcomes.items())}).values()
        found = {agent: outcome for pairs in gathered for agent, outcome in pairs}
        for agent in sorted(agent for agent, outcome in found.items() if outcome == MEAN):
            self._take_mean(run, agent, t)
        # One whose new process is lost meanwhile is tried again before the next round.
        self._given_up |= {a for a in wanted if a not in home or found.get(a) == FAILED}
        return {a: (home[a], outcome) for a, outcome in found.items() if outcome != FAILED}

    def _assign(self, world: World, agents: Sequence[int]) -> dict[int, int]:
        """Give every agent to the process with the fewest that can read its shard. Collective."""
        here = world.local_agents[0]
        seen = world.collect({here: self._readable(agents)})
        members = world.members
        readers = {members.rank_of(first): set(found) for first, found in seen.items()}
        load = {rank: len(members.agents_of(rank)) for rank in readers}
        home = {}
        for agent in agents:
            able = [rank for rank, found in readers.items() if agent in found]
            if able:
                rank = min(able, key=lambda rank: (load[rank], rank))
                load[rank] += 1
                home[agent] = rank
        return home

    def _readable(self, agents: Sequence[int]) -> list[int]:
        index = self._experiment.index
        paths = {agent: index.folder / index.agents[agent].file for agent in agents}
        return [agent for agent, path in paths.items() if os.access(path, os.R_OK)]

    def _make(self, run: Run, agent: int) -> int:
        """Make an agent; return the round of its checkpoint, ``MEAN``, or ``FAILED``."""
        experiment = self._experiment
        try:
            made = build.make_agent(
                experiment.config, run.objective, run.algorithm, experiment.index, agent,
                run.agents[0].params.grad,
            )  # fmt: skip
        except (DecdpoError, OSError, MemoryError) as fault:
            _say_here(f"agent {agent} cannot be adopted: {fault}")
            return FAILED
        self.made[agent] = made
        if run.algorithm.needs.meets == "server":
            return MEAN
        return saved_state(experiment.out / "checkpoints", experiment.store.run, agent, made.state)

    def _take_mean(self, run: Run, agent: int, t: int) -> None:
        """Give an agent the mean of its neighbours' models. Collective."""
        made = self.made.get(agent)
        target = run.agents[0].params.shared if made is None else made.params.shared
        mean = mean_of_neighbours(run, agent, t)
        if made is not None:
            target.copy_(mean.model)
        if mean.missed:
            self._say(
                f"agent {agent} begins at the mean of its neighbours' models"
                + of_factors(mean.missed)
            )


def mean_of_neighbours(run: Run, agent: int, t: int) -> Beginning:
    """Return the mean of the models of an ``agent``'s neighbours, before round ``t``.

    Collective. If one of them is lost meanwhile, it is that of the others.
    """
    while True:
        before = run.world.members.agents
        some = neighbours(run, agent, t)
        mean = mean_beginning(run.world, run.algorithm, run.objective.policy, run.agents, some)
        if run.world.members.agents == before:
            return mean


def neighbours(run: Run, agent: int, t: int) -> tuple[int, ...]:
    """Return whose models a new ``agent`` begins with the mean of, before round ``t``."""
    assert run.recovery is not None
    mixing = run.recovery.full.mixing(t)
    return models_for(run.algorithm.needs, mixing, agent, run.world.members.agents)


def models_for(
    needs: Needs, mixing: Mixing, agent: int, others: Sequence[int]
) -> tuple[int, ...]:
    """Return whose models a new ``agent`` begins with the mean of, out of ``others``.

    mixing : of the round before which it comes. All of them if it has no neighbour there.
    """
    if needs.meets == "server":
        return tuple(others[:1])
    sources = mixing.row(agent).sources
    return tuple(j for j in others if j in sources) or tuple(others)


def saved_state(folder: Path, run: str, agent: int, state: Any) -> int:
    """Fill ``state`` from the newest checkpoint of a run that holds ``agent``; return its round.

    Returns ``MEAN``, and leaves ``state`` as it is, if there is none that can be read. One that
    cannot is named.
    """
    try:
        paths = list(committed(folder).values())
    except OSError as fault:
        _say_here(f"warning: agent {agent} is not adopted from {folder}: {reason(fault)}")
        return MEAN
    for path in reversed(paths):
        try:
            manifest = read_manifest(path)
            if manifest.run == run and agent in manifest.held:
                with open_part(path / manifest.part_of(agent).file) as reader:
                    for name in reader.contents(agent)[1]:
                        reader.check(agent, name)
                    reader.restore(agent, state)
                return manifest.round
        except (DecdpoError, OSError) as fault:
            _say_here(f"warning: agent {agent} is not adopted from {path}: {fault}")
    return MEAN


def _say_here(line: str) -> None:
    """Print a line of this process alone, which need not be the one that speaks for all."""
    print(f"decdpo: {line}", file=sys.stderr, flush=True)


def _rank(world: World) -> int:
    return world.members.rank_of(world.local_agents[0])
