"""Numbers that are sound alone, but not with the rest: too large for a type, or never reached."""

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.config import Config

LIMITS = {
    "float32": (1.1754944e-38, 3.4028234e38),
    "bfloat16": (1.1754944e-38, 3.3895313e38),
}
"""The smallest and the largest size of a number that a type holds in full; float64 holds all."""

MOST_STEPS = 10**9
"""Rounds of a run, and local steps of a round: a year of them at 30 a second."""


def check_numbers(config: "Config") -> None:
    """Raise ``ConfigError`` for what ``policy.dtype`` does not hold, or too long a warm-up."""
    dtype = config.policy.dtype
    if dtype in LIMITS:
        smallest, largest = LIMITS[dtype]
        for key, value in _numbers(config):
            if abs(value) > largest:
                raise ConfigError(
                    f"{key} = {value} is more than policy.dtype = {dtype!r} holds",
                    f"give {largest:.3g} or less",
                )
            if 0 < abs(value) < smallest:
                raise ConfigError(
                    f"{key} = {value} is 0 in policy.dtype = {dtype!r}",
                    f"give {smallest:.3g} or more, or 0 where that is allowed",
                )
    for key, value in _counts(config):
        if value > MOST_STEPS:
            raise ConfigError(
                f"{key} = {value} is more than any run comes to",
                f"give {MOST_STEPS} or less",
            )
    steps = config.run.rounds * config.algorithm.local_steps
    if config.optim.warmup_steps > steps:
        raise ConfigError(
            f"optim.warmup_steps = {config.optim.warmup_steps}, but run.rounds = "
            f"{config.run.rounds} are {steps} local steps: optim.lr would never be reached",
            f"give {steps} or less",
        )


def _counts(config: "Config") -> Iterator[tuple[str, int]]:
    """Yield the key and value of every count that decides when a run ends."""
    yield "run.rounds", config.run.rounds
    yield "algorithm.local_steps", config.algorithm.local_steps


def _numbers(config: "Config") -> Iterator[tuple[str, float]]:
    """Yield the key and value of every float that meets parameters in ``policy.dtype``."""
    computed: dict[str, Any] = {
        "loss": config.loss, "algorithm": config.algorithm, "optim": config.optim
    }  # fmt: skip
    for name, section in computed.items():
        for field in fields(section):
            value = getattr(section, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, float):
                    yield f"{name}.{field.name}", item
