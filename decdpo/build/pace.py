"""From a configuration to how many local steps each agent takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decdpo.algorithms.base import Algorithm
from decdpo.algorithms.wrappers.own_pace import OwnPace
from decdpo.algorithms.wrappers.within import wrapper_of
from decdpo.comm.world import World
from decdpo.config import Config
from decdpo.config.algorithms import FedAvg
from decdpo.config.pace import GivenPace, MeasuredPace, ReplayedPace
from decdpo.errors import ConfigError
from decdpo.pacing import RECORD, Measured, Paced, Timetable, read_timetable, shared_timetable
from decdpo.run import Pace


def at_own_pace(config: Config, algorithm: Algorithm[Any], num_shared: int) -> Algorithm[Any]:
    """Return the algorithm, each of whose agents takes local steps of its own if asked for."""
    if not config.pace.own:
        return algorithm
    return OwnPace(algorithm, num_shared, config.pace.normalise)


def make_pace(
    config: Config,
    world: World,
    algorithm: Algorithm[Any],
    pairs: Sequence[int],
    out: Path,
    next_round: int,
) -> Pace | None:
    """Return what says how many local steps each agent takes, None where all take as many.

    pairs : training pairs of every agent, (n,). out : folder of the run. Raises a ``DecdpoError``
    on all processes if what is given or recorded does not suit. Collective.
    """
    section, usual = config.pace, config.algorithm.local_steps
    if not section.own:
        return None
    paced = wrapper_of(algorithm, OwnPace)
    assert paced is not None, "such an algorithm was made for the same section"
    if not weighs_pairs(config):
        pairs = [1] * len(pairs)
    if isinstance(section, MeasuredPace):
        path = out / RECORD
        table = shared_timetable(world, path, usual, section.every, next_round)
        most = section.most or 4 * usual
        return Measured(table, paced, pairs, path=path, every=section.every, most=most)
    if isinstance(section, ReplayedPace):
        path = Path(section.run) / RECORD
        return Paced(read_timetable(path, usual), paced, pairs)
    assert isinstance(section, GivenPace)
    table = Timetable(usual)
    table.add(0, dict(enumerate(section.steps)))
    return Paced(table, paced, pairs)


def check_steps(config: Config, num_agents: int) -> None:
    """Raise ``ConfigError`` if the local steps are not given for all agents, or by no record."""
    section = config.pace
    if isinstance(section, ReplayedPace) and not section.run:
        raise ConfigError("pace.run is empty", "name the folder of the recorded run")
    if isinstance(section, GivenPace) and len(section.steps) != num_agents:
        raise ConfigError(
            f"pace.steps has {len(section.steps)} numbers, but there are {num_agents} agents",
            f"give {num_agents} numbers, one for each agent",
        )


def weighs_pairs(config: Config) -> bool:
    """Say whether agents count by their numbers of pairs in the mean that is kept."""
    algorithm, topology = config.algorithm, config.topology
    if isinstance(algorithm, FedAvg):
        return algorithm.weighting == "pairs"
    return topology is not None and topology.weights == "pairs"
