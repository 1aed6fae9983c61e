"""What is known of a run before its first round: gathered once, printed, and kept in run.json."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decdpo.checkpoint.state import tensor_bytes
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.machine import machine
from decdpo.comm.world import Exchange, World
from decdpo.config import Config
from decdpo.config.policies import CausalLM
from decdpo.policies.base import Policy
from decdpo.report.start import distinct
from decdpo.run import Agent, Schedule
from decdpo.session.saving import saves, write_seconds


def start_facts(
    world: World,
    config: Config,
    policy: Policy,
    schedule: Schedule,
    exchange: Exchange | None,
    agents: Sequence[Agent],
    device: str,
    out: Path,
    next_round: int,
    store: CheckpointStore,
) -> dict[str, Any]:
    """Return the facts that ``report.start`` makes lines of, the same on every process. Collective.

    agents : those of this process. device : of this process. next_round : from which it trains.
    store : of its checkpoints.
    """
    of_agent = world.collect({a.id: _facts(a) for a in agents}).values()
    mine = {
        "machine": machine(device),
        "transport": "nothing is sent" if exchange is None else exchange.transport,
        "doubts": [] if exchange is None else list(exchange.doubts),
    }
    places = world.collect({a.id: mine if a is agents[0] else None for a in agents})
    of_process = [place for place in places.values() if place]
    model = config.policy.model if isinstance(config.policy, CausalLM) else ""
    training = [p["training"] for p in of_agent]
    saved = sum(p["saved_bytes"] for p in of_agent)
    checkpoint = {"files": store.files, "bytes": saved}
    return {
        "agents": world.num_agents,
        "most_on_one": max(Counter(world.members.home.values()).values()),
        "processes": [place["machine"] for place in of_process],
        "wanted_device": config.device.kind,
        "gpu_of_use": isinstance(config.policy, CausalLM),
        "policy": " ".join([config.policy.kind, model]).strip(),
        "precision": _precision(config.policy.dtype, policy),
        "parameters": policy.layout.size,
        "pairs": {
            "training": sum(training),
            "heldout": sum(p["heldout"] for p in of_agent),
            "fewest": min(training),
            "most": max(training),
            "equal": sum(p["equal"] for p in of_agent),
        },
        "method": f"{config.algorithm.kind}, {config.pace.words(config.algorithm.local_steps)}, "
        f"loss {config.loss.kind}, "
        f"{config.optim.kind} at lr {config.optim.lr:g}",
        "graph": config.graph or None,
        "rho": schedule.rho,
        "transport": distinct(place["transport"] for place in of_process),
        "doubts": distinct(doubt for place in of_process for doubt in place["doubts"]),
        "rounds": [next_round, config.run.rounds],
        "folder": str(out),
        "checkpoint": checkpoint,
        "saves": saves(config.checkpoint, **checkpoint, write=write_seconds(store, saved)),
    }


def _precision(computed: str, policy: Policy) -> str:
    trained = str(policy.layout.dtype).removeprefix("torch.")
    return computed if computed == trained else f"{computed}, trained in {trained}"


def _facts(agent: Agent) -> dict[str, int]:
    data = agent.data
    return {
        "training": data.num_train,
        "heldout": data.num_heldout,
        "equal": int(data.alike[data.train_rows].sum()),
        "saved_bytes": tensor_bytes(agent.state),
    }
