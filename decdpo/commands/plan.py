"""Say what a run will need before it is queued: memory, files and messages, with nothing loaded.

Shapes follow from the model's config.json, so that models of any size can be planned where they
would not fit. The memory is an estimate of the peak of the rank that hosts most agents.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from decdpo.config import Config
from decdpo.config.schema import CausalLM, LogLinear
from decdpo.errors import ConfigError
from decdpo.report.plan_table import plan_table

PROGRAM = 420_000_000
"""Bytes of Python, torch and transformers themselves."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo plan``."""
    parser.add_argument("config", help="TOML file of the run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key"
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument(
        "--tokens", type=int, metavar="N",
        help="tokens of the longest row (policy.tokens_at_once, or a pair of policy.max_length)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="what a rank may use; status 1 if it needs more"
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB",
        help="of a rank's GPU, which then holds all but messages and checkpoints",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, nothing else")


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns 1 if something does not fit."""
    from decdpo.config import load
    from decdpo.config.places import find_paths

    if args.ranks < 1:
        raise ConfigError(f"--ranks is {args.ranks}", "give at least 1")
    if args.tokens is not None and args.tokens < 2:
        raise ConfigError(f"--tokens is {args.tokens}", "give at least 2")
    for flag in ("memory", "gpu_memory"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value:g}", "give gigabytes above 0")
    config = find_paths(load(args.config, args.set), Path(args.config), lambda line: None)
    page = plan(config, args.ranks, args.tokens)
    page["doubts"] = [
        _over(what, page[f"{what}_bytes"], limit)
        for what, limit in (("host", args.memory), ("gpu", args.gpu_memory))
        if limit is not None and page[f"{what}_bytes"] > limit * 1e9
    ] if args.gpu_memory else [
        _over("rank", page["total_bytes"], args.memory)
        for _ in range(1) if args.memory is not None and page["total_bytes"] > args.memory * 1e9
    ]  # fmt: skip
    page["fits"] = not page["doubts"]
    print(json.dumps(page, indent=1) if args.json else plan_table(page))
    return 0 if page["fits"] else 1


def plan(config: Config, ranks: int, tokens: int | None = None) -> dict[str, Any]:
    """Return what a run of ``config`` on so many ranks needs, as JSON values.

    tokens : of the longest row; None is ``policy.tokens_at_once``, or a pair of the longest texts.
    """
    import torch

    from decdpo import build
    from decdpo.comm.membership import Membership
    from decdpo.data.index import ShardIndex

    agents, pairs = config.agents.count, []
    if config.data.shards and (Path(config.data.shards) / "index.json").exists():
        index = ShardIndex.load(config.data.shards)
        agents = build.num_agents(config, index)
        pairs = [entry.num_train + entry.num_heldout for entry in index.agents[:agents]]
    if not agents:
        raise ConfigError(
            "the number of agents is unknown: data.shards has no index yet",
            "set agents.count, or make the shards first",
        )
    ranks = min(ranks, agents)
    members = Membership.blocks(agents, ranks)
    most = max(sum(home == rank for home in members.home.values()) for rank in range(ranks))
    layout, step, words = _model(config, tokens)
    optimizer = build.make_optimizer(config.optim)
    algorithm = build.make_algorithm(config.algorithm, optimizer, layout, config.run.seed)
    with torch.device("meta"):
        state = _tensors(algorithm.init(torch.empty(layout.size, dtype=layout.dtype)))
    each = layout.dtype.itemsize
    message = algorithm.message_size(layout.num_shared) * (
        1 if algorithm.needs.sends_bytes else each
    )
    schedule = build.make_topology(config, [max(count, 1) for count in pairs] or [1] * agents)
    rows = {i: schedule.mixing(0).row(i) for i in range(agents)} if message else {}
    sent = sum(len(row.targets) for row in rows.values())
    far = {
        i: {j for j in row.sources if members.home[j] != members.home[i]}
        for i, row in rows.items()
    }
    busiest = max(
        (
            sum(2 + 2 * len(far[i]) if ranks > 1 else 1
                for i in rows if members.home[i] == rank)
            for rank in range(ranks)
        ),
        default=0,
    )  # fmt: skip
    parameters = layout.size * each
    memory = {
        "program": PROGRAM,
        "parameters": most * parameters,
        "optimizer and algorithm": most * (state - parameters),
        "gradient": parameters,
        **step,
        "reference": 8 * max(pairs, default=0) * most if _cached(config) else step.get("narrow", 0)
        or parameters,
        "messages": busiest * message,
        "checkpoint writer": most * state,
    }
    if config.policy.kind != "causal_lm":
        memory["reference"] = 0
    # A measurement holds the average model, its gradient and their sum, when no step is under way.
    idle = sum(memory.get(key, 0) for key in ("activations", "head"))
    measuring = 3 * parameters
    memory["measuring, beyond a step"] = max(measuring - idle, 0)
    host = sum(memory[key] for key in ("program", "messages", "checkpoint writer"))
    saves = 1 if not config.checkpoint.every else -(-config.run.rounds // config.checkpoint.every)
    return {
        "agents": agents, "ranks": ranks, "agents_of_a_rank": most,
        "parameters": layout.size, "policy": words, "memory": memory,
        "total_bytes": sum(memory.values()), "host_bytes": host,
        "gpu_bytes": sum(memory.values()) - host,
        "checkpoint": {
            "files": ranks + 1, "bytes": agents * state, "written": saves + 1,
            "kept": config.checkpoint.keep,
        },
        "round": {
            "messages": sent, "bytes": sent * message, "message_bytes": message,
            "between_ranks": sum(len(others) for others in far.values()),
        },
    }  # fmt: skip


def _cached(config: Config) -> bool:
    return not isinstance(config.policy, CausalLM) or config.policy.cache_reference


def _model(config: Config, tokens: int | None) -> tuple[Any, dict[str, int], str]:
    """Return the layout of the policy, the bytes that a step adds, and both in words."""
    from decdpo import build
    from decdpo.data.index import ShardIndex
    from decdpo.params.flat import Layout

    section = config.policy
    if not isinstance(section, CausalLM):
        shard = None
        if isinstance(section, LogLinear) and section.features == "columns":
            shard = ShardIndex.load(config.data.shards).open(0)
        layout = build.make_policy(config, shard, "cpu").layout
        return layout, {"activations": 0}, f"{section.kind} in {section.dtype}"
    import torch

    from decdpo.policies.causal_lm import DTYPES, MAX_LENGTH
    from decdpo.policies.lm import hub
    from decdpo.policies.lm.memory import activation_bytes, head_bytes, meta_model

    known = hub.load_config(section.model, section.allow_hub)
    with hub.quiet():
        module = meta_model(known)
    layout = Layout.of(module.to(torch.float32))
    context = hub.context(known) or MAX_LENGTH
    length = section.max_length or min(MAX_LENGTH, context)
    # Both answers of the longest pair, with a prompt that takes half of the length.
    row = tokens or max(section.tokens_at_once, length + length // 2)
    dtype = DTYPES[section.dtype]
    vocabulary, width = module.get_output_embeddings().weight.shape
    step = {
        "activations": activation_bytes(module, row, dtype, section.activation_checkpointing),
        "head": head_bytes(vocabulary, width, row, dtype),
    }
    if dtype != layout.dtype:
        step["narrow"] = layout.size * dtype.itemsize
    words = f"{known.model_type} of {layout.size:,} parameters in {section.dtype}, {row} tokens"
    return layout, step, words


def _tensors(state: Any) -> int:
    """Return the bytes of the tensors of a state, nested ones included; views count once."""
    import dataclasses

    import torch

    seen: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            base = value if value._base is None else value._base
            seen[id(base)] = base.numel() * base.element_size()
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name))

    walk(state)
    return sum(seen.values())


def _over(what: str, needed: int, limit: float) -> str:
    names = {"host": "the memory of a rank", "gpu": "its GPU", "rank": "a rank"}
    return (
        f"{names[what]} needs {needed / 1e9:.1f} GB of {limit:g} GB: start more ranks, lower "
        "policy.max_length or policy.tokens_at_once, or set policy.dtype = \"bfloat16\" or "
        "policy.activation_checkpointing = true"
    )
