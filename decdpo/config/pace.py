"""The sections ``[pace]``: how many local steps each agent takes in a round."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decdpo.config.options import option
from decdpo.config.policies import CausalLM
from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.config import Config

NORMALISE = "count an agent's progress by the step (FedNova), so that a fast one pulls no harder"
"""What the key of that name means."""

WHO_DECIDES = "how many local steps an agent takes in a round, and who decides"
"""What the key ``kind`` means."""


@dataclass(frozen=True)
class Pace:
    """What every section says; equal is where ``normalise`` is no key."""

    kind: str

    @property
    def own(self) -> bool:
        """Whether agents may take different numbers of local steps."""
        return self.kind != "equal"

    @property
    def normalise(self) -> bool:
        """Whether the progress of an agent is counted by the step."""
        return False

    def words(self, usual: int) -> str:
        """Return how many local steps agents take; usual : E."""
        return f"E = {usual}" if not self.own else f"E by agent ({self.kind})"


@dataclass(frozen=True)
class EqualPace(Pace):
    """Every agent takes algorithm.local_steps."""

    kind: str = option("equal", WHO_DECIDES)


@dataclass(frozen=True)
class GivenPace(Pace):
    """Every agent takes a number of local steps of its own."""

    kind: str = option("given", WHO_DECIDES)
    steps: tuple[int, ...] = option((1,), "local steps of agents 0, 1, ...", low=1, high=10**6)
    normalise: bool = option(True, NORMALISE)

    def words(self, usual: int) -> str:
        """Return the fewest and the most local steps of an agent."""
        return f"E = {min(self.steps)} to {max(self.steps)} by agent"


@dataclass(frozen=True)
class MeasuredPace(Pace):
    """Local steps in proportion to the speed of an agent's process; recorded in RUN/pace.jsonl."""

    kind: str = option("measured", WHO_DECIDES)
    every: int = option(10, "rounds between two decisions", low=1)
    most: int = option(
        0, "local steps of a round that an agent may take; 0 is 4 algorithm.local_steps", low=0
    )
    normalise: bool = option(True, NORMALISE)


@dataclass(frozen=True)
class ReplayedPace(Pace):
    """Local steps as in a recorded run; its bits, in one process or many."""

    kind: str = option("replay", WHO_DECIDES)
    run: str = option("", "run folder with pace.jsonl", path=True)
    normalise: bool = option(True, NORMALISE)


PACES: dict[str, type[Pace]] = {
    "equal": EqualPace, "given": GivenPace, "measured": MeasuredPace, "replay": ReplayedPace,
}  # fmt: skip
"""The section of every kind, the default first."""


def check_pace(config: "Config") -> None:
    """Raise ``ConfigError`` where agents must step alike, or nothing would measure them."""
    if not config.pace.own:
        return
    name, algorithm = f"pace.kind = {config.pace.kind!r}", config.algorithm.kind
    from decdpo.algorithms.catalogue import ALGORITHMS, needs_of

    if not needs_of(algorithm).own_pace:
        suited = [kind for kind in ALGORITHMS if needs_of(kind).own_pace]
        raise ConfigError(
            f"{name} does not suit algorithm.kind = {algorithm!r}, whose agents step alike",
            "choose algorithm.kind = " + " or ".join(map(repr, suited)),
        )
    if isinstance(config.policy, CausalLM) and config.policy.lora.mix == "svd":
        raise ConfigError(
            f"{name} does not suit policy.lora.mix = 'svd': progress in A and B counted by the "
            "step is not that of their product",
            "choose another rule",
        )
    if config.pace.kind != "given" and config.faults.on_loss != "abort":
        raise ConfigError(
            f"{name} does not suit faults.on_loss = {config.faults.on_loss!r}: what was measured "
            "of a process says nothing of agents that others take over",
            'set faults.on_loss = "abort", or give the steps by pace.steps',
        )
