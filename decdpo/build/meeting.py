"""From a configuration to whom the agents meet: the mixing weights, and how messages travel."""

from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decdpo.algorithms.base import Algorithm
from decdpo.algorithms.catalogue import needs_of
from decdpo.comm.late.delays import Delays, RecordedDelays, SeededDelays
from decdpo.comm.late.staleness import StaleExchange
from decdpo.comm.server import ServerExchange
from decdpo.comm.world import Exchange, World
from decdpo.config import Config, schema
from decdpo.config.algorithms import FedAvg
from decdpo.errors import ConfigError, TopologyError
from decdpo.params.flat import Layout
from decdpo.run import Schedule
from decdpo.topology.names import TIME_VARYING
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import (
    Averaging,
    Isolated,
    make_schedule,
    require_connected_union,
)

AGES = "ages"
"""Folder of a run with the ages of messages that were late by arrival."""

UNION_ROUNDS = 64
"""Rounds of a time-varying schedule whose links together must connect all agents."""


def make_topology(config: Config, pairs: Sequence[int]) -> Schedule:
    """Return the mixing schedule of the algorithm.

    pairs : the number of training pairs of every agent, (n,).

    Raises a ``DecdpoError`` if the graph or the participants do not suit n agents.
    """
    num_agents, algorithm = len(pairs), config.algorithm
    needs = needs_of(algorithm.kind)
    if needs.meets == "nobody":
        return Isolated()
    if isinstance(algorithm, FedAvg):
        chosen = algorithm.participants or num_agents
        if chosen > num_agents:
            raise ConfigError(
                f"algorithm.participants = {chosen}, but there are {num_agents} agents",
                f"set algorithm.participants to {num_agents} or less",
            )
        weights = pairs if algorithm.weighting == "pairs" else None
        return Participation(num_agents, chosen, config.run.seed, weights)
    section = config.topology
    if section is None:
        return Averaging(range(num_agents))
    schedule = make_schedule(
        section.graph,
        section.weights,
        num_agents,
        seed=section.seed,
        degree=section.degree or None,
        probability=section.probability or None,
        file=section.file or None,
        push_sum=needs.weights == "column",
        pairs=pairs,
    )
    if needs.weights == "symmetric" and not schedule.symmetric:
        other = needs.instead
        raise TopologyError(
            f"the weights of topology.file = {section.file!r} are not symmetric: "
            f"{algorithm.kind.replace('_', ' ')} is known to converge with symmetric ones only",
            "symmetrize them" + (f", or use algorithm.kind = {other!r}" if other else ""),
        )
    _check_majority(algorithm.dishonest, schedule.num_sources, section.graph)
    _check_period(algorithm.fragments, schedule.period, section.graph)
    if section.graph in TIME_VARYING:
        require_connected_union(schedule, num_agents, min(config.run.rounds, UNION_ROUNDS))
    return schedule


def _check_majority(dishonest: int, num_sources: np.ndarray, graph: str) -> None:
    """Refuse a graph on which an agent's neighbours may be dishonest by half or more."""
    fewest = int(num_sources.min())
    if dishonest and fewest <= 2 * dishonest:
        raise TopologyError(
            f"algorithm.dishonest = {dishonest} needs more than {2 * dishonest} neighbours of each "
            f"agent, but on topology.graph = {graph!r} agent {int(num_sources.argmin())} has "
            f"{fewest}",
            "choose a graph with more links, such as complete, or fewer dishonest neighbours",
        )


def _check_period(fragments: int, period: int, graph: str) -> None:
    """Refuse parts of the vector that would meet some of the graph's weights only."""
    common = gcd(fragments, period)
    if common > 1:
        raise TopologyError(
            f"algorithm.fragments = {fragments} does not suit topology.graph = {graph!r}, which "
            f"repeats after {period} rounds: a part would be mixed by the same {period // common} "
            f"of its {period} matrices for ever",
            f"choose algorithm.fragments without a common factor with {period}",
        )


def make_delays(config: Config, world: World) -> Delays:
    """Return what says how late messages are. Raises a ``DecdpoError`` if a record is missing."""
    late = config.staleness
    if isinstance(late, schema.Replay):
        if not late.run:
            raise ConfigError("staleness.run is empty", "name the folder of the recorded run")
        return RecordedDelays(Path(late.run) / AGES, world.local_agents, late.max_age)
    fixed = isinstance(late, schema.SeededDelays) and late.delay == "fixed"
    return SeededDelays(config.run.seed, late.max_age, fixed=fixed)


def scheduled_age(late: schema.Lateness) -> int:
    """Return how old messages may be by a schedule, 0 if none decides."""
    return late.max_age if isinstance(late, (schema.SeededDelays, schema.Replay)) else 0


def make_exchange(
    config: Config, world: World, algorithm: Algorithm[Any], layout: Layout, device: str
) -> Exchange | None:
    """Return the exchange that the algorithm needs, None if it needs none. Collective."""
    size = algorithm.message_size(layout.num_shared)
    if size == 0:
        return None
    dtype = torch.uint8 if algorithm.needs.sends_bytes else layout.dtype

    late = config.staleness
    arrival = late.max_age if isinstance(late, schema.Arrival) else 0

    def new() -> Exchange:
        return world.exchange(
            size,
            dtype,
            digest=layout.digest,
            device=device,
            staging=config.device.staging,
            max_age=arrival,
        )

    if scheduled_age(late):
        return StaleExchange(new(), make_delays(config, world), late.max_age)
    if algorithm.needs.meets != "server":
        return new()
    # All agents receive the average, so that each begins the next round at the same model.
    exchange = ServerExchange(new(), new(), all_hear=world.num_agents)
    # Where agents were lost before, those that are left are not 0 ... n-1, nor is 0 the server.
    exchange.rewire(world.members, {})
    return exchange
