"""Own pace: agents that take as many local steps in a round as suits their machine and their shard.

Agent i begins round t at x_i,t and takes E_i local steps to x_i,E. A slow agent that took E would
keep all others waiting; a fast one that takes more would pull the mean of the models towards the
optimum of its own shard, in proportion to E_i. Hence its progress counts by the step before it is
mixed or sent, by the rule of the algorithm:

    x_i <- x_i,t + c_i (x_i,E - x_i,t),    c_i = tau / E_i,    tau = sum_j p_j E_j             (1)

with p_j = 1/n, or agent j's share of all training pairs where pairs weigh (``topology.weights`` or
``algorithm.weighting`` = "pairs"). So x_i moves tau steps along its mean direction, whatever E_i
is. Where the mixing keeps the mean sum_i p_i x_i, as doubly stochastic weights do for equal p_i and
pair weights (``topology.weights.pairs``) for shares of the pairs, that mean moves in a round by

    sum_i p_i c_i (x_i,E - x_i,t) = tau sum_i p_i (x_i,E - x_i,t) / E_i,                       (2)

which is FedNova's rule with a server in the place of neighbours: the fixed point is that of the
objective sum_i p_i f_i and does not depend on the pace. Without (1) it is that of the objective in
which agent i weighs p_i E_i. With equal E_i, c_i is 1 and nothing is done: the bits are the plain
ones.

The normaliser of the source is the sum of the weights that an optimizer gives its E_i gradients.
For plain steps that is E_i; we take E_i for momentum and Adam as well, since their memory goes on
from round to round, where the source begins it anew. Where parts of the vector travel in turn, the
values that stay have their progress counted likewise.

Reference: Wang, Liu, Liang, Joshi and Poor, "Tackling the objective inconsistency problem in
heterogeneous federated optimization", 2020, arXiv:2007.07481 (FedNova), eqs. (8) to (11).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decdpo.algorithms.base import Algorithm, Needs
from decdpo.algorithms.wrappers.within import extended
from decdpo.messages import Inbox


@dataclass(frozen=True)
class OwnPace:
    """The algorithm ``inner``, each of whose agents takes a number of local steps of its own.

    num_shared : M. The state is ``inner``'s with four more fields. before : (M,) x_i,t, the shared
    part where the round began; empty if progress is not counted by the step. left : local steps
    still to be taken in this round, of ``steps``. scale : c_i.
    """

    inner: Algorithm
    num_shared: int
    normalised: bool = True

    @property
    def needs(self) -> Needs:
        """What ``inner`` needs."""
        return self.inner.needs

    def init(self, x: Tensor) -> Any:
        """Return the state of an agent that starts at ``x`` (P,)."""
        state = self.inner.init(x)
        before = x[: self.num_shared if self.normalised else 0].clone()
        return extended(state, "OwnPace", before=before, steps=0, left=0, scale=1.0)

    def message_size(self, num_shared: int) -> int:
        """Return M of ``inner``."""
        return self.inner.message_size(num_shared)

    def begin(self, state: Any, steps: int, scale: float) -> None:
        """Let a round of ``steps`` local steps begin, whose change counts ``scale`` times, c_i."""
        state.steps = state.left = steps
        state.scale = scale if self.normalised else 1.0

    def local_step(self, state: Any, grad: Tensor, lr: float) -> None:
        """Take ``inner``'s local step; after the last one of the round, count the progress (1)."""
        shared, scaled = state.x[: self.num_shared], state.scale != 1.0
        if scaled and state.left == state.steps:
            state.before.copy_(shared)
        self.inner.local_step(state, grad, lr)
        state.left -= 1
        if scaled and not state.left:
            shared.sub_(state.before).mul_(state.scale).add_(state.before)

    def message(self, state: Any) -> Tensor:
        """Return ``inner``'s message (M,)."""
        return self.inner.message(state)

    def mix(self, state: Any, inbox: Inbox) -> None:
        """Mix as ``inner`` does."""
        self.inner.mix(state, inbox)

    def restart(self, state: Any, rounds: int, mean: Tensor | None) -> None:
        """Restart as ``inner`` does."""
        self.inner.restart(state, rounds, mean)
