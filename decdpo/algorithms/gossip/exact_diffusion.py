"""Exact diffusion, which is D2 with lazy weights: DSGD with a correction that removes its bias.

In matrix form, a row per agent, with W~ = (I + W) / 2 and psi_-1 = x_0:

    psi_t = x_t - eta g_t                                       adapt                    (1)
    phi_t = psi_t + x_t - psi_t-1                               correct                  (2)
    x_t+1 = W~ phi_t                                            combine                  (3)

Let d_t = x_t - psi_t-1. Then phi_t = psi_t + d_t, and by (2), (3)

    d_t+1 = x_t+1 - psi_t = d_t + (x_t+1 - phi_t),                                       (4)

the sum of all displacements so far. At a fixed point nothing is displaced, all x_i agree and
d_i = eta g_i, hence sum_i g_i = 0 as sum_i d_i = 0: the optimum of the mean objective, with a
constant step and however unlike the agents are. We keep d, which costs the same memory as psi.

When agents are lost, those that are left (a set L) have sum_L d_i = -sum of the lost d_i, and would
go to a point with sum_L g_i = sum_L d_i / eta. After the round of the loss is mixed they begin
again from where they are, as from x_0,

    d_i <- 0,       i in L.                                                              (5)

W must be symmetric, for the proofs need it, and agents that do not share the step size or rescale
their gradients by their own history (Adam) or norm (clipping) would share another fixed point.
Momentum v leaves it, as d_i = eta v_i then has v_i = g_i / (1 - momentum), and weight decay makes
it that of the decayed loss. Random matchings are symmetric in every round and leave the same fixed
point, but the sources treat a constant W. The message is what the local step and the correction
make, so there is no overlap; one gradient per round: E = 1. Personal parameters follow their own
gradient. d is a sum of small differences, which needs float32 or better.

Where parts of the vector travel in turn (``wrappers/fragments.py``) a part is corrected in each of
F rounds by what is displaced in one, and (4) must share that out,

    d_t+1 = d_t + (x_t+1 - phi_t) / F,                                                   (6)

as local exact diffusion does with F local steps; undivided, F corrections overshoot. At a fixed
point nothing is displaced, which is the same point for every F.

D2 has W in (3) in place of W~, and needs its eigenvalues above -1/3; those of W~ are at least 0.
NIDS is the same recursion for smooth objectives, with W~ = I - c eta (I - W), here c = 1 / (2 eta).

References: Yuan, Ying, Zhao and Sayed, "Exact diffusion for distributed optimization and learning",
Part I, 2019, for (1) to (3); Tang et al., "D2: decentralized training over decentralized data",
2018; Li, Shi and Yan, "A decentralized proximal-gradient method with network independent step-sizes
and separated convergence rates", 2019, for NIDS; Alghunaim, "Local exact-diffusion for
decentralized optimization and learning", 2023, arXiv:2302.00620, for (6), which is our use of it.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part
from decdpo.messages import Inbox
from decdpo.params.optim import Optimizer, OptimState


@dataclass
class ExactDiffusionState:
    """x : (P,) the parameters x_i. drift : (M,) d_i. optim : what the optimizer remembers."""

    x: Tensor
    drift: Tensor
    optim: OptimState


@dataclass(frozen=True)
class ExactDiffusion(InParts[ExactDiffusionState]):
    """Exact diffusion, eqs. (1) to (6); ``optimizer`` takes the step (1). num_shared : M.

    The loss of an agent restarts the corrections: without the lost agent sum_i d_i is not 0 any
    more.
    """

    needs: ClassVar[Needs] = Needs(
        weights="symmetric",
        every_message=True,
        equal_steps=True,
        instead="gradient_tracking",
        sends_model=True,
        in_parts=True,
        against_products="it corrects A and B by earlier ones, whose coordinates turn with every "
        "cut",
        on_loss="restarts",
    )

    optimizer: Optimizer
    num_shared: int

    def init(self, x: Tensor) -> ExactDiffusionState:
        """Return the state of an agent that starts at ``x`` (P,)."""
        return ExactDiffusionState(x, x.new_zeros(self.num_shared), self.optimizer.init(x))

    def message_size(self, num_shared: int) -> int:
        """Return M: the shared parameters travel."""
        return num_shared

    def local_step(self, state: ExactDiffusionState, grad: Tensor, lr: float) -> None:
        """x_i <- phi_i = x_i - eta g_i + d_i."""
        self.optimizer.step(state.x, state.optim, grad, lr)
        state.x[: self.num_shared].add_(state.drift)

    def message(self, state: ExactDiffusionState) -> Tensor:
        """Return phi_i, the shared part (M,)."""
        return state.x[: self.num_shared]

    def mix_part(self, state: ExactDiffusionState, inbox: Inbox, part: Part) -> None:
        """x_i <- phi_i + 1/2 sum_j w_ij (phi_j - phi_i), and d_i moves by 1/F of the same, (6)."""
        shared, drift = state.x[part.values], state.drift[part.values]
        drift.sub_(shared, alpha=1 / part.count)
        inbox.displace(shared, 0.5)
        drift.add_(shared, alpha=1 / part.count)

    def restart(self, state: ExactDiffusionState, rounds: int, mean: Tensor | None) -> None:
        """d_i <- 0, eq. (5)."""
        state.drift.zero_()
