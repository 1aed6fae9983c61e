"""Stochastic gradient push: decentralized SGD where senders, not receivers, set the weights.

On a directed graph an agent may not know how many weigh its message, and rows of the mixing matrix
need not sum to one. P is column-stochastic: agent j splits what it has among those it sends to,
itself included. Sums are preserved, but every agent ends with its own multiple of the average;
a scalar w_i that is pushed along shows which, and z_i = n_i / w_i is free of it. With n_i,0 = x_0
and w_i,0 = 1, one round of E = 1 local step is

    n_i <- n_i - eta g_i(z_i)                                                            (1)
    n_i <- sum_j p_ij n_j,    w_i <- sum_j p_ij w_j,    z_i <- n_i / w_i.                 (2)

E local steps repeat (1), with z_i renewed after each. With ``overlap = true`` the messages hold n_j
as it was before the local steps, and (2) adds their sum over E to what arrives: nothing is stale.
The model that is trained, measured and exported is z_i. We keep z_i and w_i, and step by eta / w_i,
which is (1) divided by w_i; personal parameters take the same step. sum_i n_i moves by the
gradients alone, whatever P is. If P is doubly stochastic w_i stays 1, and this is DSGD; one-peer
exponential schedules are of that kind. The weight travels as the last value of the message and
needs float32 or better. Where parts of the vector travel in turn (``wrappers/fragments.py``), each
is pushed with a weight of its own.

Reference: Assran, Loizou, Ballas and Rabbat, "Stochastic gradient push for distributed deep
learning", 2019, Algorithm 1; momentum acts on n along g(z), as there. The overlap is ours, DSGD's:
in the source's (OSGP) an agent gives its shares away at once and steps on with p_ii n_i, p_ii w_i.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part, of_part, part_of, with_part
from decdpo.messages import Inbox
from decdpo.params.optim import Optimizer, OptimState


@dataclass
class PushSumState:
    """What an agent remembers.

    x : (P,) the de-biased parameters z_i. weight : w_i, or those of parts (F,). mass : (M + 1,)
    room for n_i and w_i. optim : what the optimizer remembers.
    """

    x: Tensor
    mass: Tensor
    optim: OptimState
    weight: float | Tensor = 1.0


@dataclass(frozen=True)
class PushSum(InParts[PushSumState]):
    """Stochastic gradient push, eqs. (1), (2); ``optimizer`` takes the local steps.

    The loss of an agent keeps the state: what the lost agent held is gone from n and w alike, and
    z_i stays a weighted mean of the others.
    """

    needs: ClassVar[Needs] = Needs(
        weights="column",
        every_message=True,
        against_products="it divides A and B by their weight, and the product so by its square",
        in_parts=True,
        on_loss="keeps",
    )

    optimizer: Optimizer
    num_shared: int

    def init(self, x: Tensor) -> PushSumState:
        """Return the state of an agent that starts at ``x`` (P,)."""
        return PushSumState(x, x.new_zeros(self.num_shared + 1), self.optimizer.init(x))

    def init_parts(self, x: Tensor, count: int) -> PushSumState:
        """Return the state for parts, each with a weight of its own."""
        state = self.init(x)
        state.weight = torch.ones(count, dtype=torch.float64)
        return state

    def message_size(self, num_shared: int) -> int:
        """Return M + 1: the shared parameters and the weight travel."""
        return num_shared + 1

    def part_size(self, size: int) -> int:
        """Return one value more, the weight."""
        return size + 1

    def local_step(self, state: PushSumState, grad: Tensor, lr: float) -> None:
        """z_i <- z_i - (eta / w_i) g_i(z_i), or the optimizer's version of it."""
        if not isinstance(state.weight, Tensor):
            self.optimizer.step(state.x, state.optim, grad, lr / state.weight)
            return
        # A step is proportional to eta: that of each part is divided by its own weight.
        before = state.x.clone()
        self.optimizer.step(state.x, state.optim, grad, lr)
        for index, weight in enumerate(state.weight.tolist()):
            here = part_of(self.num_shared, index, len(state.weight)).with_personal
            torch.lerp(before[here], state.x[here], 1 / weight, out=state.x[here])

    def message(self, state: PushSumState) -> Tensor:
        """Return (n_i, w_i), (M + 1,)."""
        return self.part_message(state, part_of(self.num_shared, 0, 1))

    def part_message(self, state: PushSumState, part: Part) -> Tensor:
        """Return (n_i, w_i) of ``part``."""
        mass, weight = state.mass[: part.size + 1], of_part(state.weight, part)
        torch.mul(state.x[part.values], weight, out=mass[:-1])
        mass[-1] = weight
        return mass

    def mix_part(self, state: PushSumState, inbox: Inbox, part: Part) -> None:
        """Combine n_i and w_i, and divide."""
        mass = self.part_message(state, part)
        inbox.combine(mass)
        weight = float(mass[-1])
        state.weight = with_part(state.weight, part, weight)
        torch.div(mass[:-1], weight, out=state.x[part.values])

    def restart(self, state: PushSumState, rounds: int, mean: Tensor | None) -> None:
        """Do nothing: n_i and w_i lose the same share."""
