"""What the losses share: checks of their constants, log-sigmoid, and the mean over steps."""

import math

import torch.nn.functional as F
from torch import Tensor

from decdpo.errors import ConfigError


def require_positive(key: str, value: float) -> None:
    """Raise ConfigError unless ``loss.<key>`` is a finite number above 0."""
    if not (_is_number(value) and value > 0):
        raise ConfigError(
            f"loss.{key} = {value!r} is not a positive finite number",
            f"Set loss.{key} to a number above 0.",
        )


def require_between(
    key: str, value: float, low: float, high: float, *, below_high: bool = False
) -> None:
    """Raise ConfigError unless low <= ``loss.<key>`` <= high (< high if ``below_high``)."""
    inside = _is_number(value) and low <= value <= high and not (below_high and value == high)
    if not inside:
        interval = f"[{low:g}, {high:g}{')' if below_high or math.isinf(high) else ']'}"
        raise ConfigError(
            f"loss.{key} = {value!r} is not a finite number in {interval}",
            f"Set loss.{key} to a number in {interval}.",
        )


def require_flag(key: str, value: bool) -> None:
    """Raise ConfigError unless ``loss.<key>`` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(
            f"loss.{key} = {value!r} is not a truth value", f"Set loss.{key} to true or false."
        )


def log_sigmoid(z: Tensor) -> Tensor:
    """Return log sigma(z) = -softplus(-z) elementwise, without overflow at any finite z."""
    return F.logsigmoid(z)


def mean_over_steps(total: Tensor, length: Tensor) -> Tensor:
    """Return the (B,) sums ``total`` divided by the (B,) numbers of steps.

    An answer without steps has an empty sum, 0, and 0 is taken as its mean.
    """
    return total / length.clamp(min=1).to(total.dtype)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)
