"""FedDPO: federated averaging of the DPO objective.

In round t, S of the n agents take part, a set S_t drawn afresh. They begin at the common model
x_t, take E local steps on their own shards, and the server averages what they reach:

    x_i,0 = x_t,    x_i,h+1 = x_i,h - eta g_i(x_i,h),    h = 0 ... E-1,  i in S_t        (1)
    x_t+1 = sum_{i in S_t} p_i x_i,E                                                     (2)

with p_i = 1/S, or p_i in proportion to the agent's number of pairs. Every agent receives x_t+1, so
that all begin the next round with the same bits; an agent outside S_t takes no step and sends
nothing. Which agents take part is the schedule's business (``Participation``), the sum that of a
``ServerExchange``. Everybody has to wait for the average: there is no overlap.

An agent keeps its local optimizer's memory between the rounds in which it takes part; the sources
use plain steps, where there is none. Momentum on the server (Hsu et al., "Measuring the effects of
non-identical data distribution for federated visual classification", 2019, FedAvgM) is
``OuterMomentum`` with an outer step size of 1 on the same schedule.

References: McMahan et al., "Communication-efficient learning of deep networks from decentralized
data", 2017, Algorithm 1 (FederatedAveraging) for (1), (2); Jiang, "Distributed Direct Preference
Optimization", 2026, Theorem 5.1, for their use with DPO.
"""

from typing import ClassVar

from decdpo.algorithms.base import Needs
from decdpo.algorithms.gossip.dsgd import Dsgd, DsgdState
from decdpo.messages import Inbox


class FedAvg(Dsgd):
    """Federated averaging, eqs. (1) and (2); ``optimizer`` takes the local steps.

    The loss of an agent keeps the state: participants are drawn from those that are left, and x_t
    is theirs already. If the agent that sums is lost, the lowest one that is left sums the round.
    """

    needs: ClassVar[Needs] = Needs(
        meets="server",
        own_pace=True,
        plain_steps=True,
        against_products="its server adds up A and B",
        on_loss="keeps",
    )

    def mix(self, state: DsgdState, inbox: Inbox) -> None:
        """x_i <- the server's model: a copy, so that all agents hold the same bits."""
        inbox.settle()
        (message,) = inbox.messages
        state.x[: self.num_shared].copy_(message.body)
