"""The section ``[policy.personal]``: what of it cannot mean anything."""

from typing import TYPE_CHECKING

from decdpo.config.options import options
from decdpo.config.policies import CausalLM, Personal
from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.config import Config

RESTRAINTS = tuple(
    f"{part}_{what}"
    for part in ("head", "reward", "bottleneck")
    for what in ("lr_factor", "weight_decay")
)
"""The keys of how the steps of a part are restrained."""

REWARDED = "fedpdpo"
"""The loss that reads explicit rewards."""


def check_personal(policy: CausalLM) -> None:
    """Raise ``ConfigError`` for a key that the others leave unused, or parts without adapters."""
    personal = policy.personal
    given = [
        key
        for key, field, value in options(personal, "policy.personal.")
        if value != field.default
    ]
    if not personal.on:
        if given:
            raise ConfigError(
                f"{given[0]} is given, but no personal part is switched on",
                'set policy.personal.head = "full" or "low_rank", policy.personal.reward = true or '
                "policy.personal.bottleneck = 16, or remove the section",
            )
        return
    defaults = Personal()
    head = personal.head != "none", 'policy.personal.head = "full" or "low_rank"'
    reward = personal.reward, "policy.personal.reward = true"
    bottleneck = personal.bottleneck > 0, "policy.personal.bottleneck above 0"
    for key, (used, needs) in {
        "head_rank": (personal.head == "low_rank", 'policy.personal.head = "low_rank"'),
        "activation": bottleneck,
        "head_lr_factor": head,
        "head_weight_decay": head,
        "reward_lr_factor": reward,
        "reward_weight_decay": reward,
        "bottleneck_lr_factor": bottleneck,
        "bottleneck_weight_decay": bottleneck,
    }.items():
        if getattr(personal, key) != getattr(defaults, key) and not used:
            raise ConfigError(
                f"policy.personal.{key} is not used without {needs}",
                f"set that, or remove policy.personal.{key}",
            )
    if not policy.lora.on:
        raise ConfigError(
            "[policy.personal] stands beside adapters of a frozen model, and policy.lora.rank = 0 "
            "trains the whole model",
            "set policy.lora.rank, such as 8",
        )


def check_parts(config: "Config") -> None:
    """Raise ``ConfigError`` for parts that loss or algorithm do not train as asked, or lack."""
    policy, loss = config.policy, config.loss.kind
    personal = policy.personal if isinstance(policy, CausalLM) else None
    if personal is not None and personal.reward and loss != REWARDED:
        raise ConfigError(
            f"policy.personal.reward = true, but loss.kind = {loss!r} reads no explicit reward: "
            "the head would not be trained",
            f'set loss.kind = "{REWARDED}", or policy.personal.reward = false',
        )
    if loss == REWARDED and (personal is None or not personal.on):
        raise ConfigError(
            f"loss.kind = {REWARDED!r} is that of a policy with personal parts",
            'choose loss.kind = "dpo", or policy.kind = "causal_lm" with [policy.personal]',
        )
    if personal is None:
        return
    plain = Personal()
    changed = (key for key in RESTRAINTS if getattr(personal, key) != getattr(plain, key))
    restrained = next(changed, "")
    if not restrained:
        return
    from decdpo.algorithms.catalogue import needs_of

    if needs_of(config.algorithm.kind).momentum:
        raise ConfigError(
            f"algorithm.kind = {config.algorithm.kind!r} moves an agent's own parts by a momentum "
            f"of its own, which policy.personal.{restrained} would not reach",
            f"remove policy.personal.{restrained}, or choose another algorithm",
        )
