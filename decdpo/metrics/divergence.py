"""When a run counts as diverged: its loss or its parameters are beyond reason.

A run is looked at in every recorded round and before every save. It is in doubt if the training
loss of the round, the mean over all agents, is more than ``above`` times that of the start, or the
parameters are more than ``LARGEST_NORM`` times as long as at the start. A round of large steps can
do that and come back. So it has diverged only if it is in doubt twice in a row, or at its last
round; while it is in doubt nothing is saved, and the last good checkpoint stays.

Losses have scales of their own (log 2 for DPO, 1 / (2 beta)^2 for IPO), hence the multiple; some
start near 0 or below (SLiC with margins, rDPO), hence ``SMALLEST_SCALE``; some are bounded (KTO),
hence the parameters.
"""

from math import log

from decdpo.errors import NumericalError

LARGEST_NORM = 1e8
"""Times the length of the parameters at the start, or 1 if they are shorter."""
SMALLEST_SCALE = log(2)
"""What the loss of the start counts as if it is smaller."""


def excess(start: float, loss: float | None) -> float:
    """Return how many times the loss of the ``start`` a ``loss`` is; 0 if there is none."""
    return 0.0 if loss is None else abs(loss) / max(abs(start), SMALLEST_SCALE)


class Diverged(NumericalError):
    """A run whose loss or parameters have left all reason, while they are still finite."""

    collective = True


class Divergence:
    """Looks at a run; every process sees the same numbers, and so decides alike.

    above : multiple of the start's loss; 0 to look at nothing. loss, norm : of the start. remedy :
    what helps against steps that are too large.
    """

    def __init__(
        self, above: float, loss: float, norm: float, remedy: str = "lower optim.lr"
    ) -> None:
        self._above = above
        self._remedy = remedy
        self._loss = loss
        self._norm = norm
        self._round = 0
        self.doubt = ""

    def look(self, done: int, loss: float | None, norm: float, *, last: bool) -> str:
        """Return what is wrong after ``done`` rounds, "" if nothing is.

        loss : None if no pair was trained on. last : whether the run would end here.

        Raises ``Diverged`` if it is wrong for the second time in a row, or at the end.
        """
        before, doubt = self.doubt, self._wrong(loss, norm)
        if done == self._round:
            before = ""
        self._round, self.doubt = done, doubt
        if doubt and (before or last):
            raise Diverged(
                f"the run diverged: in round {done} {doubt}",
                f"{self._remedy}: the last checkpoint is of before, and "
                "`decdpo resume RUN --allow optim.lr --set optim.lr=...` goes on from there; "
                f"run.diverged_above = {self._above:g} says what counts as diverged, 0 is nothing",
            )
        return doubt

    def _wrong(self, loss: float | None, norm: float) -> str:
        if not self._above:
            return ""
        times = excess(self._loss, loss)
        if not times <= self._above:
            return (
                f"the training loss is {loss:.3g}, {times:.2g} times that of the start "
                f"({self._loss:.3g})"
            )
        if not norm <= LARGEST_NORM * max(self._norm, 1.0):
            return f"the parameters have the length {norm:.3g}, at the start {self._norm:.3g}"
        return ""
