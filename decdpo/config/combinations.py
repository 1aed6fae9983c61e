"""Combinations of values of several keys that cannot mean anything, whatever the algorithm."""

from dataclasses import fields
from typing import TYPE_CHECKING

from decdpo.config import schema
from decdpo.config.lora import check_lora
from decdpo.config.options import nearest
from decdpo.config.personal import check_parts, check_personal
from decdpo.config.policies import CausalLM, LogLinear
from decdpo.config.schema import AdamW, Sgd
from decdpo.errors import ConfigError
from decdpo.topology.names import RANDOM, options_used, weights_allowed

if TYPE_CHECKING:
    from decdpo.config import Config

LANGUAGE_MODEL_DTYPES = ("float32", "bfloat16")
"""Types in which a language model may compute; what is trained is float32 in both."""


def check_combinations(config: "Config") -> None:
    """Refuse combinations of values that cannot mean anything."""
    policy, optim = config.policy, config.optim
    if isinstance(policy, CausalLM):
        _check_language_model(policy)
    check_parts(config)
    if isinstance(policy, LogLinear) and policy.features == "columns":
        default = next(f.default for f in fields(policy) if f.name == "dimension")
        if policy.dimension != default:
            raise ConfigError(
                f"policy.dimension = {policy.dimension} is not used with policy.features = "
                "'columns': the shard's columns decide",
                "remove policy.dimension",
            )
    if config.loss.kind == "rdpo_length" and policy.kind == "loglinear":
        raise ConfigError(
            "loss.kind = 'rdpo_length' weighs the length of answers, but to policy.kind = "
            "'loglinear' each is one step",
            "choose loss.kind = 'dpo', or policy.kind = 'causal_lm'",
        )
    if isinstance(optim, AdamW) and len(optim.betas) != 2:
        raise ConfigError(f"optim.betas = {list(optim.betas)} has not two values", "give two")
    if isinstance(optim, Sgd) and optim.nesterov and not optim.momentum:
        raise ConfigError("optim.nesterov = true is ignored when optim.momentum = 0",
                          "set a momentum, or remove nesterov")
    if config.device.kind == "cuda" and policy.kind != "causal_lm":
        raise ConfigError(
            f"device.kind = 'cuda' is ignored by policy.kind = {policy.kind!r}, which computes on "
            "the CPU",
            "use device.kind = 'cpu' or 'auto'",
        )
    if config.device.kind == "cpu" and config.device.share_gpu:
        raise ConfigError("device.share_gpu = true is ignored when device.kind = 'cpu'",
                          "remove it, or use device.kind = 'cuda'")
    if config.device.staging == "device":
        _check_staging(config)
    default = next(f.default for f in fields(config.checkpoint) if f.name == "mtbf_hours")
    if config.checkpoint.mtbf_hours != default and not config.checkpoint.by_time:
        raise ConfigError(
            f"checkpoint.mtbf_hours = {config.checkpoint.mtbf_hours:g} is not used with "
            f"checkpoint.every = {config.checkpoint.every}",
            'remove it, or set checkpoint.every = "auto"',
        )


def _check_language_model(policy: CausalLM) -> None:
    """Refuse types that nothing is computed in, and limits that mean nothing."""
    if policy.dtype not in LANGUAGE_MODEL_DTYPES:
        raise ConfigError(
            f"policy.dtype = {policy.dtype!r} is not one that a language model is trained "
            f"in{nearest(policy.dtype, LANGUAGE_MODEL_DTYPES)}",
            "use 'float32', or 'bfloat16' for the arithmetic; parameters and moments are float32 "
            "in both",
        )
    if 0 < policy.max_length < 8:
        raise ConfigError(
            f"policy.max_length = {policy.max_length} is too small",
            "give 8 or more, or 0 for the default",
        )
    check_lora(policy.lora)
    check_personal(policy)


def _check_staging(config: "Config") -> None:
    """Refuse GPU memory for messages where there is none, or a way that cannot carry it."""
    on_cpu = ""
    if config.device.kind == "cpu":
        on_cpu = "device.kind = 'cpu'"
    elif config.policy.kind != "causal_lm":
        on_cpu = f"policy.kind = {config.policy.kind!r}, which computes on the CPU"
    if on_cpu:
        raise ConfigError(f"device.staging = 'device' is ignored with {on_cpu}",
                          "remove it, or use device.staging = 'host'")
    if config.comm.transport == "window":
        raise ConfigError(
            "comm.transport = 'window' is memory of the host, where device.staging = 'device' has "
            "no messages",
            "use comm.transport = 'auto' or 'p2p', or device.staging = 'host'",
        )


def check_topology(topology: schema.Topology) -> None:
    """Refuse an option that the chosen graph and weight rule would ignore, or that they lack."""
    used = options_used(topology.graph, topology.weights)
    for key in ("degree", "probability", "file"):
        if getattr(topology, key) and key not in used:
            raise ConfigError(
                f"topology.{key} is not used by topology.graph = {topology.graph!r} with "
                f"weights = {topology.weights!r}",
                f"remove topology.{key}",
            )
    if topology.seed and topology.graph not in RANDOM:
        raise ConfigError(
            f"topology.seed is not used by topology.graph = {topology.graph!r}: it is not random",
            "remove topology.seed",
        )
    if "file" in used and not topology.file:
        raise ConfigError(
            "topology.file is empty", "name an edge list, or a matrix as .npz or .csv"
        )
    if topology.weights not in weights_allowed(topology.graph):
        raise ConfigError(
            f"topology.weights = {topology.weights!r} cannot be used on graph {topology.graph!r}",
            "choose one of " + ", ".join(weights_allowed(topology.graph)),
        )
