"""One process in which agents are lost, and come back, when they did so in a recorded run."""

from collections.abc import Mapping

from decdpo.comm.checks import incomplete
from decdpo.comm.history import History
from decdpo.comm.local import LocalWorld
from decdpo.comm.membership import Membership


class ReplayedWorld(LocalWorld):
    """A world of all agents of ``history``, whose members change as it says."""

    def __init__(self, history: History) -> None:
        super().__init__(len(history.everybody), history.everybody)
        self._left = list(history.changes)

    def begin(self) -> None:
        """Lose who was lost before the first round, once all that takes part then has been made.

        A run makes, and saves, the agents of all before it can lose any.
        """
        self._enter(0)

    def commit(self, round: int, complete: bool) -> Membership:
        """Return the members, others than before if some were lost in this ``round``."""
        if not complete:
            raise incomplete(round)
        if self._left and self._left[0].midway and self._left[0].round == round:
            self._lose()
        return self.members

    def stop_due(self, round: int) -> bool:
        """Lose who was lost before the next round; say no."""
        self._enter(round + 1)
        return False

    def adopt(self, home: Mapping[int, int]) -> None:
        """Let the lost agents of ``home`` take part again."""
        self.members = self.members.adding(dict.fromkeys(home, 0))

    def _enter(self, round: int) -> None:
        while self._left and not self._left[0].midway and self._left[0].round == round:
            self._lose()

    def _lose(self) -> None:
        lost = self._left.pop(0).lost
        home = {agent: 0 for agent in self.members.agents if agent not in lost}
        self.members = Membership(self.members.epoch + 1, tuple(home), home)
