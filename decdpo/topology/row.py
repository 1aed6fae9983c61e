"""One agent's view of a mixing matrix."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Row:
    """Row i of a mixing matrix W, as agent i needs it in one round.

    own : w_ii. sources : in-neighbours j != i with w_ij != 0, ascending. weights : w_ij, one per
    source. targets : out-neighbours k != i with w_ki != 0, ascending. active : whether agent i
    takes part in the round; otherwise it takes no local step and sends nothing, it only listens.
    """

    own: float
    sources: tuple[int, ...]
    weights: tuple[float, ...]
    targets: tuple[int, ...]
    active: bool = True


class Mixing(Protocol):
    """The weights of one round of communication."""

    def row(self, agent: int) -> Row:
        """Return what ``agent`` receives and sends in this round."""
        ...


class Schedule(Protocol):
    """Maps a round to its mixing weights; the same in every process."""

    def mixing(self, round: int) -> Mixing:
        """Return the mixing weights of ``round`` (0-based)."""
        ...
