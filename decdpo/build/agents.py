"""From a configuration to the agents of this process, with their shards, models and states."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decdpo.algorithms.base import Algorithm
from decdpo.algorithms.wrappers.products import ProductMixing
from decdpo.algorithms.wrappers.recall import Recalling
from decdpo.algorithms.wrappers.running import Running
from decdpo.build.adapters import factors_of, make_lora, make_personal, restrained
from decdpo.build.learning import in_fragments, make_algorithm, make_loss, make_optimizer
from decdpo.build.meeting import make_topology, scheduled_age
from decdpo.build.pace import at_own_pace, check_steps
from decdpo.build.privacy import make_privacy, make_sampler
from decdpo.comm.world import World
from decdpo.config import Config, policies
from decdpo.data.index import ShardIndex
from decdpo.data.shard import PreferenceShard
from decdpo.data.trajectories import FEATURES_FILE, load_features
from decdpo.errors import ConfigError
from decdpo.losses.names import LOSSES
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.base import Policy
from decdpo.policies.lm.pace import Pace
from decdpo.policies.lm.text.speller import TextRules
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Objective, check_start
from decdpo.policies.private import PrivateGradients
from decdpo.policies.tabular import Tabular
from decdpo.policies.trajectory import Trajectory
from decdpo.run import Agent, MeasuredState, Schedule


@dataclass(frozen=True)
class Ensemble:
    """The agents of this process, and what they have in common.

    schedule : whom each one meets, of all agents. objective : what they minimize. algorithm : how
    they step and mix. agents : the local ones, ascending. pairs : training pairs of every agent,
    (n,), also of those that are lost. privacy : what clips and noises the gradients, if anything.
    """

    schedule: Schedule
    objective: Objective
    algorithm: Algorithm[Any]
    agents: list[Agent]
    pairs: tuple[int, ...]
    privacy: PrivateGradients | None = None


def open_index(config: Config) -> ShardIndex:
    """Read the table of contents of ``data.shards``, which has shards for all agents.

    Raises ``ConfigError`` if it has not, ``DataError`` if it cannot be read.
    """
    if not config.data.shards:
        raise ConfigError(
            "data.shards is empty", "name the folder that `decdpo shard` made, under [data]"
        )
    index = ShardIndex.load(config.data.shards)
    num_agents(config, index)
    return index


def num_agents(config: Config, index: ShardIndex) -> int:
    """Return the number of agents, checked against the number of shards."""
    count = config.agents.count or index.num_agents
    if count > index.num_agents:
        raise ConfigError(
            f"agents.count = {count}, but {index.folder} holds {index.num_agents} shards",
            f"set agents.count = {index.num_agents}, or make more shards",
        )
    return count


def make_policy(
    config: Config, shard: PreferenceShard | None, device: str, pace: Pace | None = None
) -> Policy:
    """Return the policy of the section ``[policy]``; ``shard`` tells the number of columns.

    pace : shows how far a long preparation is.
    """
    section = config.policy
    if isinstance(section, policies.CausalLM):
        from decdpo.policies.causal_lm import CausalLM

        if not section.model:
            raise ConfigError("policy.model is empty", "name the Hugging Face folder of the model")
        lora = section.lora
        return CausalLM(
            section.model,
            dtype=section.dtype,
            device=device,
            max_length=section.max_length,
            gradient_checkpointing=section.activation_checkpointing,
            cache_reference=section.cache_reference,
            tokens_at_once=section.tokens_at_once,
            compiled=section.compile,
            graphs=section.graphs,
            allow_hub=section.allow_hub,
            rules=TextRules(section.chat_template, section.eos, section.line_break),
            pace=pace,
            lora=make_lora(lora, config.run.seed) if lora.on else None,
            adapter=Path(lora.adapter) if lora.adapter else None,
            personal=make_personal(section.personal, config.run.seed),
        )
    if isinstance(section, policies.Trajectory):
        path = section.feature_map or Path(config.data.shards) / FEATURES_FILE
        return Trajectory(load_features(Path(path)), section.dtype)
    if isinstance(section, policies.Tabular):
        return Tabular(
            section.states, section.actions, section.hidden, section.dtype, config.run.seed
        )
    dimension = section.dimension
    if section.features == "columns" and shard is not None and shard.features is not None:
        dimension = shard.features[0].shape[1]
    return LogLinear(dimension, features=section.features, dtype=section.dtype)


def make_run_algorithm(
    config: Config, layout: Layout, policy: Policy | None = None
) -> Algorithm[Any]:
    """Return the algorithm, with what the loss or late messages add to an agent's state.

    policy : of the layout; without it only sizes are right.
    """
    optimizer = make_optimizer(config.optim)
    if policy is not None:
        optimizer = restrained(optimizer, config, policy)
    algorithm = make_algorithm(config.algorithm, optimizer, layout, config.run.seed)
    algorithm = in_fragments(algorithm, config.algorithm.fragments, layout.num_shared)
    algorithm = at_own_pace(config, algorithm, layout.num_shared)
    section = config.policy
    if isinstance(section, policies.CausalLM) and section.lora.mix == "svd" and policy is not None:
        start = policy.initial()[: layout.num_shared]
        algorithm = ProductMixing(algorithm, layout.num_shared, factors_of(policy), start)
    if LOSSES[config.loss.kind].has_state:
        algorithm = Running(algorithm)
    age = scheduled_age(config.staleness)
    return Recalling(algorithm, layout.num_shared, age) if age else algorithm


def encode(policy: Policy, shard: PreferenceShard) -> Any:
    """Return ``shard`` as ``policy`` reads it."""
    return policy.encode(shard)


def make_ensemble(
    config: Config,
    world: World,
    index: ShardIndex,
    device: str,
    encode: Callable[[Policy, PreferenceShard], Any] = encode,
    say: Callable[[str], None] | None = None,
    training: bool = True,
) -> Ensemble:
    """Make the schedule of all agents; load the local ones' shards, make their models and states.

    encode : what encodes a shard; runs that share their data may remember it. say : prints a line
    every ten seconds while the model is loaded and shards are encoded. training : whether agents
    are trained; otherwise all share one vector, to hold the model of one after another.

    Opens no other agent's shard. Raises a ``DecdpoError`` naming what does not fit.
    """
    everybody = index.agents[: num_agents(config, index)]
    check_steps(config, len(everybody))
    pairs = tuple(entry.num_train for entry in everybody)
    schedule = make_topology(config, pairs)
    shards = {i: index.open(i) for i in world.local_agents}
    _check_columns(config, shards)
    with Pace(say, sum(shard.num_pairs for shard in shards.values())) as pace:
        policy = make_policy(config, next(iter(shards.values())), device, pace)
        encoded = {}
        for i, shard in shards.items():
            pace.begin("encoding shards")
            encoded[i] = encode(policy, shard)
            # A policy may have shown its own, finer works meanwhile.
            pace.step(shard.num_pairs, "encoding shards")
    objective = Objective(policy, make_loss(config.loss))
    algorithm = make_run_algorithm(config, policy.layout, policy)
    places = list(encoded)
    if len(places) > 1 and hasattr(policy, "pool"):
        encoded = dict(zip(places, policy.pool(list(encoded.values()))))
    models: list[tuple[FlatParams, Any]]
    if training:
        models = models_in_rows(policy, algorithm, len(places))
    else:
        models = [_measured(policy, LOSSES[config.loss.kind].has_state)] * len(places)
    agents = []
    for i, (params, state) in zip(places, models, strict=True):
        sampler = make_sampler(config, i, encoded[i].num_train)
        agents.append(Agent(i, params, state, encoded[i], sampler, objective.no_stats()))
    check_start(policy, agents[0].data, start=agents[0].params)
    privacy = make_privacy(config, objective, agents) if training else None
    return Ensemble(schedule, objective, algorithm, agents, pairs, privacy)


def make_agent(
    config: Config,
    objective: Objective,
    algorithm: Algorithm[Any],
    index: ShardIndex,
    agent: int,
    grad: Tensor,
) -> Agent:
    """Make one more agent of this process, at the start, with its shard.

    grad : (P,) the gradient buffer of all agents of this process.
    """
    shard = index.open(agent)
    _check_columns(config, {agent: shard})
    data = encode(objective.policy, shard)
    state = algorithm.init(objective.policy.initial())
    params = FlatParams(objective.policy.layout, state.x, grad)
    sampler = make_sampler(config, agent, data.num_train)
    return Agent(agent, params, state, data, sampler, objective.no_stats())


def models_in_rows(
    policy: Policy, algorithm: Algorithm[Any], count: int
) -> list[tuple[FlatParams, Any]]:
    """Return parameters and states of ``count`` agents at the start, with one gradient buffer.

    The parameters are rows of one matrix, unless the state keeps a copy, so that a policy may read
    those of all agents in one call.
    """
    start = policy.initial()
    # One agent alone takes the vector itself, which so is not there once more than needed.
    rows = start[None] if count == 1 else start.expand(count, -1).contiguous()
    del start
    # Not views: autograd would take a step of one agent for a change of all others' parameters.
    states = [algorithm.init(rows[place].data) for place in range(count)]
    grad = torch.zeros_like(rows[0])
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
