"""From a configuration to the agents, whom they meet, and the run that the loop takes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from decdpo.algorithms.base import Algorithm
from decdpo.algorithms.catalogue import needs_of
from decdpo.algorithms.recall import Recalling, told_since
from decdpo.algorithms.running import Running
from decdpo.build.learning import (
    make_algorithm,
    make_learning_rate,
    make_loss,
    make_optimizer,
)
from decdpo.comm.delays import Delays, RecordedDelays, SeededDelays, age_file
from decdpo.comm.server import ServerExchange
from decdpo.comm.staleness import AgeLog, StaleExchange
from decdpo.comm.world import Exchange, World
from decdpo.config import Config, schema
from decdpo.config.algorithms import FedAvg
from decdpo.data.index import ShardIndex
from decdpo.data.sampling import EpochSampler
from decdpo.data.shard import PreferenceShard
from decdpo.data.trajectories import FEATURES_FILE, load_features
from decdpo.errors import ConfigError, TopologyError
from decdpo.evaluation import HeldOut
from decdpo.losses.names import LOSSES
from decdpo.measures import choose_measures
from decdpo.metrics import RECORDS, Metrics
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.base import Policy
from decdpo.policies.lm.pace import Pace
from decdpo.policies.lm.speller import TextRules
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Objective, check_start
from decdpo.policies.tabular import Tabular
from decdpo.policies.trajectory import Trajectory
from decdpo.progress import Progress
from decdpo.records import keep_until
from decdpo.run import Agent, MeasuredState, Run, Schedule, Store
from decdpo.topology.names import TIME_VARYING
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import (
    Averaging,
    Isolated,
    make_schedule,
    require_connected_union,
)

AGES = "ages"
"""Folder of a run with the ages of letters that were late by arrival."""

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
    )
    if needs.weights == "symmetric" and not schedule.symmetric:
        other = needs.instead
        raise TopologyError(
            f"the weights of topology.file = {section.file!r} are not symmetric: "
            f"{algorithm.kind.replace('_', ' ')} is known to converge with symmetric ones only",
            "symmetrize them" + (f", or use algorithm.kind = {other!r}" if other else ""),
        )
    if section.graph in TIME_VARYING:
        require_connected_union(schedule, num_agents, min(config.run.rounds, UNION_ROUNDS))
    return schedule


def make_policy(
    config: Config, shard: PreferenceShard | None, device: str, pace: Pace | None = None
) -> Policy:
    """Return the policy of the section ``[policy]``; ``shard`` tells the number of columns.

    pace : what is told how far a long preparation is.
    """
    section = config.policy
    if isinstance(section, schema.CausalLM):
        from decdpo.policies.causal_lm import CausalLM

        if not section.model:
            raise ConfigError("policy.model is empty", "name the Hugging Face folder of the model")
        return CausalLM(
            section.model,
            dtype=section.dtype,
            device=device,
            max_length=section.max_length,
            gradient_checkpointing=section.activation_checkpointing,
            cache_reference=section.cache_reference,
            tokens_at_once=section.tokens_at_once,
            allow_hub=section.allow_hub,
            rules=TextRules(section.chat_template, section.eos, section.line_break),
            pace=pace,
        )
    if isinstance(section, schema.Trajectory):
        path = section.feature_map or Path(config.data.shards) / FEATURES_FILE
        return Trajectory(load_features(Path(path)), section.dtype)
    if isinstance(section, schema.Tabular):
        return Tabular(
            section.states, section.actions, section.hidden, section.dtype, config.run.seed
        )
    dimension = section.dimension
    if section.features == "columns" and shard is not None and shard.features is not None:
        dimension = shard.features[0].shape[1]
    return LogLinear(dimension, features=section.features, dtype=section.dtype)


def make_delays(config: Config, world: World) -> Delays:
    """Return what says how late letters are. Raises a ``DecdpoError`` if a record is missing."""
    late = config.staleness
    if isinstance(late, schema.Replay):
        if not late.run:
            raise ConfigError("staleness.run is empty", "name the folder of the recorded run")
        return RecordedDelays(Path(late.run) / AGES, world.local_agents, late.max_age)
    fixed = isinstance(late, schema.SeededDelays) and late.delay == "fixed"
    return SeededDelays(config.run.seed, late.max_age, fixed=fixed)


def _scheduled_age(late: schema.Lateness) -> int:
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

    if _scheduled_age(late):
        return StaleExchange(new(), make_delays(config, world), late.max_age)
    if algorithm.needs.meets != "server":
        return new()
    # All agents hear the average, so that each begins the next round at the same model.
    return ServerExchange(new(), new(), all_hear=world.num_agents)


def open_index(config: Config) -> ShardIndex:
    """Read the table of contents of ``data.shards``."""
    if not config.data.shards:
        raise ConfigError(
            "data.shards is empty", "name the folder that `decdpo shard` made, under [data]"
        )
    return ShardIndex.load(config.data.shards)


def num_agents(config: Config, index: ShardIndex) -> int:
    """Return the number of agents, checked against the number of shards."""
    count = config.agents.count or index.num_agents
    if count > index.num_agents:
        raise ConfigError(
            f"agents.count = {count}, but {index.folder} holds {index.num_agents} shards",
            f"set agents.count = {index.num_agents}, or make more shards",
        )
    return count


def encode(policy: Policy, shard: PreferenceShard) -> Any:
    """Return ``shard`` as ``policy`` reads it."""
    return policy.encode(shard)


def make_agents(
    config: Config,
    world: World,
    index: ShardIndex,
    device: str,
    encode: Callable[[Policy, PreferenceShard], Any] = encode,
    say: Callable[[str], None] | None = None,
    training: bool = True,
) -> tuple[Objective, Algorithm[Any], list[Agent]]:
    """Load the local agents' shards and make their models and states.

    encode : what encodes a shard; runs that share their data may remember it. say : prints a line
    every ten seconds while the model is loaded and shards are encoded. training : whether agents
    are trained; otherwise all share one vector, to hold the model of one after another.

    Opens no other agent's shard. Raises a ``DecdpoError`` naming what does not fit.
    """
    shards = {i: index.open(i) for i in world.local_agents}
    _check_columns(config, shards)
    with Pace(say, sum(shard.num_pairs for shard in shards.values())) as pace:
        policy = make_policy(config, next(iter(shards.values())), device, pace)
        encoded = {}
        for i, shard in shards.items():
            pace.begin("encoding shards")
            encoded[i] = encode(policy, shard)
            # A policy may have told of its own, finer works meanwhile.
            pace.step(shard.num_pairs, "encoding shards")
    objective = Objective(policy, make_loss(config.loss))
    optimizer = make_optimizer(config.optim)
    algorithm = make_algorithm(config.algorithm, optimizer, policy.layout, config.run.seed)
    if LOSSES[config.loss.kind].has_state:
        algorithm = Running(algorithm)
    age = _scheduled_age(config.staleness)
    if age:
        algorithm = Recalling(algorithm, policy.layout.num_shared, age)
    places = list(encoded)
    models: list[tuple[FlatParams, Any]]
    if training:
        models = _trained(policy, algorithm, len(places))
    else:
        models = [_measured(policy, LOSSES[config.loss.kind].has_state)] * len(places)
    agents = []
    for i, (params, state) in zip(places, models, strict=True):
        sampler = EpochSampler(config.run.seed, i, encoded[i].num_train)
        agents.append(Agent(i, params, state, encoded[i], sampler, objective.no_stats()))
    check_start(policy, agents[0].data, start=agents[0].params)
    return objective, algorithm, agents


def _trained(policy: Policy, algorithm: Algorithm[Any], count: int) -> list[tuple[FlatParams, Any]]:
    """Return parameters and states of ``count`` agents at the start, with one gradient buffer."""
    start = policy.initial()
    grad = torch.zeros_like(start)
    # The last one takes the vector itself, which so is not there once more than needed.
    states = [algorithm.init(start.clone()) for _ in range(count - 1)]
    states.append(algorithm.init(start))
    return [(FlatParams(policy.layout, state.x, grad), state) for state in states]


def _measured(policy: Policy, has_running: bool) -> tuple[FlatParams, MeasuredState]:
    """Return the one vector in which the models of all agents are measured in turn."""
    start = policy.initial()
    running = torch.zeros(1, dtype=torch.float64) if has_running else None
    return FlatParams(policy.layout, start), MeasuredState(start, running)


def _check_columns(config: Config, shards: Mapping[int, PreferenceShard]) -> None:
    """Raise ``ConfigError`` if the loss needs a column that a shard lacks."""
    if LOSSES[config.loss.kind].needs_score:
        for agent, shard in shards.items():
            if shard.score_gap is None:
                raise ConfigError(
                    f"loss.kind = {config.loss.kind!r} needs a score of each answer, which the "
                    f"shard of agent {agent} does not have",
                    "shard a source with scores, or choose another loss",
                )


def local_steps(config: Config) -> int:
    """Return E, the local steps of one round."""
    return config.algorithm.local_steps


def make_heldout(
    config: Config, world: World, agents: list[Agent]
) -> tuple[HeldOut, int, str]:
    """Return what is measured, the rounds between two records, and both in words. Collective.

    The words are empty where all held-out pairs are measured and the gradient norm as well.
    """
    log = config.log
    most = max(world.collect({a.id: a.data.num_heldout for a in agents}).values())
    found = choose_measures(
        costly=config.policy.kind == "causal_lm",
        rounds=config.run.rounds,
        round_pairs=local_steps(config) * config.data.batch_size,
        most_heldout=most,
        every=log.every,
        heldout_pairs=log.heldout_pairs,
        gradient_pairs=log.gradient_pairs,
    )
    heldout = HeldOut(
        agents, config.run.seed, found.heldout_pairs, found.training_pairs, found.gradient
    )
    partly = not found.gradient or 0 < found.heldout_pairs < most
    return heldout, found.every, found.words(most) if partly else ""


def make_run(
    config: Config,
    world: World,
    schedule: Schedule,
    exchange: Exchange | None,
    objective: Objective,
    algorithm: Algorithm[Any],
    agents: list[Agent],
    store: Store,
    out: Path,
    next_round: int,
    progress: str = "auto",
) -> Run:
    """Put the pieces of a run together; it continues after ``next_round`` rounds. Collective.

    progress : how the run shows how far it is, of ``progress.MODES``.
    """
    steps = local_steps(config)
    if isinstance(exchange, StaleExchange):
        rows = {a.id: schedule.mixing(next_round).row(a.id) for a in agents}
        exchange.recall(rows, {a.id: told_since(a.state) for a in agents})
    if exchange is not None and isinstance(config.staleness, schema.Arrival):
        for agent in agents:
            keep_until(age_file(out / AGES, agent.id), next_round)
        exchange = AgeLog(exchange, out / AGES)
    heldout, every, words = make_heldout(config, world, agents)
    monitor = Metrics(
        out / RECORDS,
        heldout,
        every=every,
        measures=words,
        rho=schedule.rho,
        progress=Progress(
            next_round, config.run.rounds, enabled=world.is_root, mode=progress
        ),
        start_round=next_round,
        is_root=world.is_root,
        diverged_above=config.run.diverged_above,
    )
    return Run(
        world=world,
        exchange=exchange,
        algorithm=algorithm,
        objective=objective,
        schedule=schedule,
        agents=agents,
        lr=make_learning_rate(config.optim, config.run.rounds * steps),
        local_steps=steps,
        batch_size=config.data.batch_size,
        overlap=config.algorithm.overlap,
        num_rounds=config.run.rounds,
        monitor=monitor,
        store=store,
        next_round=next_round,
    )
