"""The sections ``[privacy]``: what an agent's messages may reveal of its pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decdpo.config.options import option
from decdpo.config.policies import Tabular
from decdpo.errors import ConfigError
from decdpo.losses.names import LOSSES

if TYPE_CHECKING:
    from decdpo.config import Config

KIND = "whether gradients are clipped and noised, so that no message reveals much of one pair"
"""What the key of that name means."""


@dataclass(frozen=True)
class Privacy:
    """What every section says."""

    kind: str

    @property
    def on(self) -> bool:
        """Whether gradients are clipped and noised."""
        return self.kind != "none"


@dataclass(frozen=True)
class NoPrivacy(Privacy):
    """Gradients as they are."""

    kind: str = option("none", KIND)


@dataclass(frozen=True)
class DpSgd(Privacy):
    """DP-SGD on every agent: differential privacy of one pair; needs the extra privacy."""

    kind: str = option("dp_sgd", KIND)
    clip: float = option(
        1.0, "C, largest norm of a pair's gradient; of a language model: of a batch's", above=0.0
    )
    noise: float = option(
        1.0, "noise multiplier: standard deviation over what one pair can change", above=0.0
    )
    delta: float = option(1e-5, "delta at which epsilon is given", above=0.0, below=1.0)
    secret: str = option(
        "",
        "file that noise and batches are drawn by, each site's own; empty: run.seed, which "
        "everybody knows",
        path=True,
    )


PRIVACY: dict[str, type[Privacy]] = {"none": NoPrivacy, "dp_sgd": DpSgd}
"""The section of every kind, the default first."""


def check_privacy(config: "Config") -> None:
    """Raise ``ConfigError`` where something would leave an agent without noise, or unclipped."""
    if not config.privacy.on:
        return
    name = f"privacy.kind = {config.privacy.kind!r}"
    if LOSSES[config.loss.kind].has_state:
        raise ConfigError(
            f"{name} does not suit loss.kind = {config.loss.kind!r}, whose running statistic "
            "agents send as it is",
            "choose another loss, such as dpo",
        )
    if isinstance(config.policy, Tabular):
        raise ConfigError(
            f"{name} does not suit policy.kind = 'tabular', whose gradient of one pair is not "
            "known by itself",
            "choose policy.kind = 'loglinear', 'trajectory' or 'causal_lm'",
        )
