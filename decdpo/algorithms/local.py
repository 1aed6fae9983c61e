"""Local training: every agent alone on its own shard, no exchange.

    x_i <- x_i - eta g_i(x_i)

The baseline that shows what the exchange is worth.
"""

from typing import ClassVar

from decdpo.algorithms.base import Needs
from decdpo.algorithms.gossip.dsgd import Dsgd, DsgdState
from decdpo.messages import Inbox


class Local(Dsgd):
    """Stochastic gradient descent without neighbours.

    The loss of an agent is refused: nobody would stand in for the lost agent, whose model is part
    of the result.
    """

    needs: ClassVar[Needs] = Needs(
        meets="nobody",
        own_pace=True,
        plain_steps=True,
        against_products="its agents mix nothing",
        on_loss="refuses",
    )

    def message_size(self, num_shared: int) -> int:
        """Return 0: nothing travels."""
        return 0

    def mix(self, state: DsgdState, inbox: Inbox) -> None:
        """Do nothing: there is nobody to listen to."""
