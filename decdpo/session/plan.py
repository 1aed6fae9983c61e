"""What a run will need, from shapes alone: memory by what takes it, files, messages.

Nothing is loaded but the table of contents of the shards: the shapes of a language model follow
from its config.json, so that one of any size can be planned where it would not fit. What a process
holds is listed in ``decdpo.run``; the memory here is of the rank that hosts most agents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decdpo import build
from decdpo.algorithms.base import Algorithm
from decdpo.checkpoint.state import LARGE, tensor_bytes
from decdpo.comm.membership import Membership
from decdpo.config import Config
from decdpo.config.policies import CausalLM, LogLinear
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError
from decdpo.params.flat import Layout, Tag
from decdpo.topology.names import TIME_VARYING
from decdpo.topology.row import Row

PROGRAM, PROGRAM_LM = 330_000_000, 470_000_000
"""Bytes of Python and its libraries themselves; with a language model's, more."""

VARYING_ROUNDS = 64
"""Rounds of a graph that changes whose neighbours are counted together."""


@dataclass(frozen=True)
class Model:
    """What is known of a policy without its values.

    layout : of its parameters. step : bytes that a step takes besides, by what takes them. words :
    for people.
    """

    layout: Layout
    step: dict[str, int]
    words: str


def plan(config: Config, ranks: int, tokens: int | None = None) -> dict[str, Any]:
    """Return what a run of ``config`` on so many ranks needs, as JSON values.

    tokens : of the longest row; None is ``policy.tokens_at_once``, or a pair of the longest texts.

    Raises ``ConfigError`` if the number of agents is not known.
    """
    training, most_heldout = _pairs(config)
    agents = len(training)
    members = Membership.blocks(agents, min(ranks, agents))
    model = _model(config, tokens)
    algorithm = build.make_run_algorithm(config, model.layout)
    state = _state_bytes(algorithm, model.layout)
    size = algorithm.message_size(model.layout.num_shared)
    message = size * (1 if algorithm.needs.sends_bytes else model.layout.dtype.itemsize)
    rounds = _rounds(config, training) if message else []
    first: Sequence[Row] = rounds[0] if rounds else []
    sent = sum(len(row.targets) for row in first)
    busiest = max(members.ranks, key=lambda rank: _slots(rounds, members, rank))
    most = max(len(members.agents_of(rank)) for rank in members.ranks)
    measures = build.make_measures(config, most_heldout)
    memory = {
        **_held(config, model, most, state),
        "messages": _slots(rounds, members, busiest) * message,
        "checkpoint writer": most * state if most * state <= LARGE else 0,
        "measuring": _measuring(model, agents, gradient=measures.gradient),
    }
    host = sum(memory[key] for key in ("program", "messages", "checkpoint writer"))
    every = config.checkpoint.rounds
    return {
        "agents": agents,
        "ranks": len(members.ranks),
        "agents_of_a_rank": most,
        "parameters": model.layout.size,
        "policy": model.words,
        "optimizer": f"{config.optim.kind} at lr {config.optim.lr:g}",
        "memory": memory,
        "total_bytes": sum(memory.values()),
        "host_bytes": host,
        "gpu_bytes": sum(memory.values()) - host,
        "checkpoint": {
            "files": len(members.ranks) + 1,
            "bytes": agents * state,
            "written": None if config.checkpoint.by_time
            else 1 + (-(-config.run.rounds // every) if every else 1),
            "kept": config.checkpoint.keep,
        },
        "round": {
            "messages": sent,
            "bytes": sent * message,
            "message_bytes": message,
            "between_ranks": _between_ranks(first, members),
        },
    }


def _pairs(config: Config) -> tuple[list[int], int]:
    """Return the training pairs of every agent, 1 where unknown, and the most held-out pairs."""
    folder = config.data.shards
    if folder and (Path(folder) / "index.json").exists():
        index = ShardIndex.load(folder)
        entries = index.agents[: build.num_agents(config, index)]
        training = [max(entry.num_train, 1) for entry in entries]
        return training, max(entry.num_heldout for entry in entries)
    if not config.agents.count:
        raise ConfigError(
            "the number of agents is unknown: data.shards has no index yet",
            "set agents.count, or make the shards first",
        )
    return [1] * config.agents.count, 0


def _model(config: Config, tokens: int | None) -> Model:
    """Return the shapes of the policy."""
    section = config.policy
    if isinstance(section, CausalLM):
        on_cpu = config.device.kind == "cpu" or not torch.cuda.is_available()
        return _language_model(section, tokens, on_cpu)
    shard = None
    if isinstance(section, LogLinear) and section.features == "columns":
        shard = build.open_index(config).open(0)
    layout = build.make_policy(config, shard, "cpu").layout
    return Model(layout, {}, f"{section.kind} in {section.dtype}")


def _language_model(section: CausalLM, tokens: int | None, on_cpu: bool) -> Model:
    from decdpo.policies.causal_lm import DTYPES
    from decdpo.policies.lm import hub
    from decdpo.policies.lm.adapters.layers import layers
    from decdpo.policies.lm.memory import activation_bytes, head_bytes, meta_model
    from decdpo.policies.lm.text.limit import MAX_LENGTH

    known = hub.load_config(section.model, section.allow_hub)
    with hub.quiet():
        module = meta_model(known)
    whole = sum(parameter.numel() for parameter in module.parameters())
    layout = _trained(section, module.to(torch.float32))
    length = section.max_length or min(MAX_LENGTH, hub.context(known) or MAX_LENGTH)
    # Both answers of the longest pair, with a prompt that takes half of the length.
    row = tokens or max(section.tokens_at_once, length + length // 2)
    dtype = DTYPES[section.dtype]
    vocabulary, width = module.get_output_embeddings().weight.shape
    again = section.activation_checkpointing
    step = {
        "activations": activation_bytes(module, row, dtype, again, spared=on_cpu),
        "head": head_bytes(vocabulary, width, row, dtype, trained=not section.lora.on),
    }
    if section.lora.dropout and not again:
        # What an adapter sees after its mask, and the mask, a byte a value.
        seen = sum(layer.in_features for _, layer in layers(module))
        step["dropout"] = row * seen * (dtype.itemsize + 1)
    narrow = layout.size * dtype.itemsize
    if dtype != layout.dtype:
        step["narrow"] = narrow
    if section.lora.on:
        # It is the reference as well.
        step = {"frozen model": whole * dtype.itemsize, **step}
    elif not section.cache_reference:
        step["reference"] = narrow
    words = f"{known.model_type} of {whole:,} parameters in {section.dtype}, {row} tokens"
    if section.lora.on:
        own = layout.size - layout.num_shared
        words += f"; {layout.num_shared:,} adapter values travel, {own:,} are an agent's own"
    return Model(layout, step, words)


def _trained(section: CausalLM, module: Any) -> Layout:
    """Give a module without values the adapters and personal parts asked for; lay out the rest."""
    if not section.lora.on:
        return Layout.of(module)
    from decdpo.policies.lm.adapters.layers import adapt
    from decdpo.policies.lm.adapters.personal import attach

    tags = adapt(module, build.make_lora(section.lora, seed=0))
    personal = build.make_personal(section.personal, seed=0)
    if personal is not None:
        head = module.get_output_embeddings().weight
        tags |= dict.fromkeys(attach(module, personal, head), Tag.PERSONAL)
    return Layout.tagged(module, tags)


def _state_bytes(algorithm: Algorithm[Any], layout: Layout) -> int:
    """Return the bytes of one agent's state, its parameters among it: what a checkpoint holds."""
    with torch.device("meta"):
        state = algorithm.init(torch.empty(layout.size, dtype=layout.dtype))
    return tensor_bytes(state)


def _held(config: Config, model: Model, agents: int, state: int) -> dict[str, int]:
    """Return what a rank with so many agents holds while it takes a step."""
    parameters = _parameters(model)
    return {
        "program": PROGRAM_LM if isinstance(config.policy, CausalLM) else PROGRAM,
        "parameters": agents * parameters,
        "optimizer and algorithm": agents * (state - parameters),
        "gradient": parameters,
        **model.step,
    }


def _measuring(model: Model, agents: int, *, gradient: bool) -> int:
    """Return what a measurement takes beyond a step, whose activations it then has no use for."""
    if agents == 1:
        return 0
    parameters = _parameters(model)
    if gradient:
        # The mean of all models, and its gradient added up in float64.
        return parameters + 8 * model.layout.num_shared
    idle = model.step.get("activations", 0) + model.step.get("head", 0)
    return max(parameters - idle, 0)


def _parameters(model: Model) -> int:
    return model.layout.size * model.layout.dtype.itemsize


def _rounds(config: Config, training: Sequence[int]) -> list[list[Row]]:
    """Return the rows of all agents: of one round, or of some where neighbours change."""
    schedule = build.make_topology(config, training)
    varying = config.graph in TIME_VARYING or not config.graph
    count = min(config.run.rounds, VARYING_ROUNDS) if varying else 1
    agents = range(len(training))
    return [[schedule.mixing(t).row(i) for i in agents] for t in range(count)]


def _slots(rounds: Sequence[Sequence[Row]], members: Membership, rank: int) -> int:
    """Return how many messages a rank has room for.

    Within one process each agent that sends has one, which all read; between processes it has two,
    and so has each remote agent that is received from.
    """
    here = members.agents_of(rank)
    senders = {i for rows in rounds for i in here if rows[i].targets}
    if len(members.ranks) == 1:
        return len(senders)
    sources = {j for rows in rounds for i in here for j in rows[i].sources}
    return 2 * len(senders) + 2 * len(sources - set(here))


def _between_ranks(rows: Sequence[Row], members: Membership) -> int:
    """Return the messages of a round that leave a process: one serves all agents of another."""
    return len({
        (source, members.rank_of(agent))
        for agent, row in enumerate(rows)
        for source in row.sources
        if members.rank_of(source) != members.rank_of(agent)
    })  # fmt: skip
