"""Local training: every agent alone on its own shard, no exchange.

    x_i <- x_i - eta g_i(x_i)

The baseline that shows what the exchange is worth.
"""

from decdpo.algorithms.dsgd import Dsgd, DsgdState
from decdpo.messages import Inbox


class Local(Dsgd):
    """Stochastic gradient descent without neighbours."""

    def message_size(self, num_shared: int) -> int:
        """Return 0: nothing travels."""
        return 0

    def mix(self, state: DsgdState, inbox: Inbox) -> None:
        """Do nothing: there is nobody to listen to."""
