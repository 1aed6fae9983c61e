"""The section ``[policy.lora]``: what of it cannot mean anything."""

from typing import TYPE_CHECKING

from decdpo.config.options import options
from decdpo.config.policies import CausalLM, Lora
from decdpo.config.schema import AdamW, Sgd
from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.config import Config


def check_lora(lora: Lora) -> None:
    """Raise ``ConfigError`` for a key that the others leave unused."""
    given = [key for key, field, value in options(lora, "policy.lora.") if value != field.default]
    if given and not lora.on:
        raise ConfigError(
            f"{given[0]} is given, but policy.lora.rank = 0 trains the whole model",
            "set policy.lora.rank, such as 8, or remove the section",
        )
    if not lora.adapter:
        return
    said = [key for key in given if key not in ("policy.lora.adapter", "policy.lora.mix")]
    if said:
        raise ConfigError(
            f"{said[0]} is given beside policy.lora.adapter, whose folder says it",
            f"remove {said[0]}",
        )
    if lora.mix == "core":
        raise ConfigError(
            "policy.lora.mix = 'core' begins from the singular vectors of the model's weights, and "
            "cannot begin from policy.lora.adapter",
            "remove policy.lora.adapter, or choose another rule",
        )


def check_products(config: "Config") -> None:
    """Raise ``ConfigError`` where products are mixed and something remembers their factors."""
    policy, optim = config.policy, config.optim
    if not isinstance(policy, CausalLM) or policy.lora.mix != "svd":
        return
    from decdpo.algorithms.catalogue import ALGORITHMS, needs_of

    name = "policy.lora.mix = 'svd'"
    why = needs_of(config.algorithm.kind).against_products
    if why:
        suited = [kind for kind in ALGORITHMS if not needs_of(kind).against_products]
        raise ConfigError(
            f"{name} does not suit algorithm.kind = {config.algorithm.kind!r}: {why}",
            "choose algorithm.kind = " + " or ".join(map(repr, suited)) + ", or another rule",
        )
    momentum = "optim.momentum" if isinstance(optim, Sgd) and optim.momentum else ""
    if isinstance(optim, AdamW):
        momentum = "optim.kind = 'adamw'"
    if momentum:
        raise ConfigError(
            f"{name} does not suit {momentum}: moments are of A and B, whose coordinates turn with "
            "every cut",
            "use optim.kind = 'sgd' without momentum and with an optim.lr, or another rule",
        )
