"""The section ``[policy.lora]``: what of it cannot mean anything."""

from decdpo.config.options import options
from decdpo.config.schema import Lora
from decdpo.errors import ConfigError


def check_lora(lora: Lora) -> None:
    """Raise ``ConfigError`` for a key that the others leave unused."""
    given = [key for key, field, value in options(lora, "policy.lora.") if value != field.default]
    if given and not lora.on:
        raise ConfigError(
            f"{given[0]} is given, but policy.lora.rank = 0 trains the whole model",
            "set policy.lora.rank, such as 8, or remove the section",
        )
    if lora.mix == "svd":
        raise ConfigError("policy.lora.mix = 'svd' is not there yet", "choose another rule")
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
