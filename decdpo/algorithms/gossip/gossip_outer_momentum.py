"""Outer momentum by gossip: DiLoCo without a server, averaging with neighbours only.

Agent i begins round t at its own x_i,t and takes E local steps of an inner optimizer to x_i,E. With
the mixing matrix W of the round, momentum beta and step size alpha of the outer optimizer,

    Delta_i,t = x_i,t - sum_j w_ij x_j,E                                                 (1)
    v_i,t+1 = beta v_i,t + Delta_i,t                                                     (2)
    x_i,t+1 = x_i,t - alpha (Delta_i,t + beta v_i,t+1)    Nesterov,                      (3)
    x_i,t+1 = x_i,t - alpha v_i,t+1                       heavy ball.                    (4)

The pseudo-gradient (1) is the average progress of the neighbourhood and the agent's distance from
it, in one vector: x_j,E alone travels. On the complete graph (1) to (4) are ``OuterMomentum`` bit
by bit, as every agent adds up the same messages in the same order. On any graph whose W is doubly
stochastic the mean of the models takes the outer step along the mean change, as the server's does.
One or few peers of a round are a matter of the graph: ``random_matching``,
``one_peer_exponential``, ``exponential``.

Both sources put momentum on local changes and on disagreement, in other forms. NoLoCo averages the
changes and the models of a random pair, and weighs the distance of the models by a constant of its
own; (1) is its rule with that constant equal to the step size. GASLoC gossips the models after the
local steps, W (x + alpha g), and lets each agent extrapolate its own local path. Our reading is to
extrapolate the average, because then the complete graph gives DiLoCo on every agent, and not in the
mean alone, and because on one-peer graphs the other form left the finite numbers in trials with
beta = 0.9.

With fixed symmetric W disagreement contracts if alpha (1 - lambda) < 2 (1 + beta) / (1 + 2 beta) in
(3), for every eigenvalue lambda of W; in (4) the limit is 2 (1 + beta). Where the graph changes
from round to round this is not enough: one peer a round with alpha = 1 and beta = 0.9 diverged, 0.7
did not. Hence alpha is 1 at most.

References: Cagnasso, Belilovsky and Oyallon, "Unifying local communications and local updates for
LLM pretraining", 2026, arXiv:2606.11081 (GASLoC); Kolehmainen et al., "NoLoCo: no-all-reduce low
communication training method for large models", 2025, arXiv:2506.10911; Douillard et al., "DiLoCo:
distributed low-communication training of language models", 2023, Algorithm 1.
"""

from typing import ClassVar

from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.server.outer_momentum import OuterMomentum, OuterState
from decdpo.messages import Inbox


class GossipOuterMomentum(OuterMomentum):
    """Local steps with an outer optimizer on every agent, eqs. (1) to (4).

    Fields as of ``OuterMomentum``; ``OuterState.anchor`` and ``outer`` are the agent's own x_i,t
    and v_i,t.

    Messages must not be late: (1) would take the age of a model for progress, and the momentum
    would go on with it.

    The loss of an agent restarts the round where each agent is, x_i,t <- x_i, which changes nothing
    but for an adopted one that begins at the mean of its neighbours. Momenta stay: any doubly
    stochastic weights average what is left, and what the lost one added decays with beta. Where a
    part of the vector travels in a round, the local steps that other parts have taken meanwhile
    stand as they are, without an outer step.
    """

    needs: ClassVar[Needs] = Needs(
        pair_weights=True,
        own_pace=True,
        plain_steps=True,
        every_message=True,
        sends_model=True,
        in_parts=True,
        against_products="its momentum is of A and B, whose coordinates turn with every cut",
        on_loss="restarts",
    )

    def average(self, shared: Tensor, inbox: Inbox) -> Tensor:
        """Return sum_j w_ij x_j,E, which takes the place of x_i,E in ``shared``."""
        inbox.average(shared)
        return shared

    def restart(self, state: OuterState, rounds: int, mean: Tensor | None) -> None:
        """Begin the next round at x_i."""
        state.anchor.copy_(state.x[: self.num_shared])
