"""The section ``[policy.personal]``: what of it cannot mean anything."""

from decdpo.config.options import options
from decdpo.config.policies import CausalLM, Personal
from decdpo.errors import ConfigError

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
    for key, used in (
        ("head_rank", personal.head == "low_rank"),
        ("activation", personal.bottleneck > 0),
    ):
        if getattr(personal, key) != getattr(defaults, key) and not used:
            needs = {
                "head_rank": 'policy.personal.head = "low_rank"',
                "activation": "policy.personal.bottleneck above 0",
            }[key]
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


def check_rewards(policy: object, loss: str) -> None:
    """Raise ``ConfigError`` for a head that the loss does not train, or a loss without parts."""
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
