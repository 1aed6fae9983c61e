"""Which agents took part when: the changes of the membership of a run, from its first round on.

A run that lost agents is determined by its configuration and this history: ``decdpo replay`` makes
it again in one process. The history is part of every checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from decdpo.errors import DataError
from decdpo.files import Malformed, checked

HISTORY = "history"
"""The key of a run's history in its checkpoints."""


MEAN = -1
"""What an adopted agent begins from without a checkpoint: the mean of its neighbours."""


@dataclass(frozen=True)
class Change:
    """One change of the membership.

    round : the first round that the new members mix, from 0. midway : whether that round had begun,
    so that its local steps were taken before. lost : agents that left. joined : agents that came
    (back), and what each one began from: the round of a checkpoint, or ``MEAN``. grown : whether
    the run was given them, and with them another graph; then those of ``joined`` that it had not
    lost are new to it.
    """

    round: int
    midway: bool
    lost: tuple[int, ...] = ()
    joined: Mapping[str, int] = field(default_factory=dict)
    grown: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def apply(self, agents: Sequence[int]) -> tuple[int, ...]:
        """Return who of ``agents`` takes part after it, ascending."""
        return tuple(sorted((set(agents) - set(self.lost)) | set(map(int, self.joined))))


class History:
    """The changes of one run, in order. everybody : the agents that it began with."""

    def __init__(self, everybody: Sequence[int], changes: Sequence[Change] = ()) -> None:
        self.everybody = tuple(everybody)
        self.changes = list(changes)

    @classmethod
    def from_json(cls, everybody: Sequence[int], values: Any) -> "History":
        """Return the history that ``to_json`` wrote; empty if there is none.

        Raises ``DataError`` if ``values`` are none.
        """
        try:
            return cls(everybody, checked(values or [], list[Change]))
        except Malformed as fault:
            raise DataError(f"the history of the run is damaged: {fault}") from None

    def to_json(self) -> list[dict[str, Any]]:
        """Return the changes as JSON values."""
        return [change.to_json() for change in self.changes]

    def members(self, round: int) -> tuple[int, ...]:
        """Return the agents whose messages are mixed in ``round``, ascending."""
        agents = self.everybody
        for change in self.changes:
            if change.round <= round:
                agents = change.apply(agents)
        return agents

    @property
    def now(self) -> tuple[int, ...]:
        """The agents that take part after all changes."""
        agents = self.everybody
        for change in self.changes:
            agents = change.apply(agents)
        return agents

    def until_began(self, round: int) -> "History":
        """Return what had happened when ``round`` began."""
        before = [c for c in self.changes if (c.round, c.midway) < (round, True)]
        return History(self.everybody, before)

    def until(self, done: int) -> "History":
        """Return what had happened when ``done`` rounds were done."""
        return History(self.everybody, [c for c in self.changes if c.round < done])
