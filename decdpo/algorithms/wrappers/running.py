"""Agents that gossip a running statistic of their loss beside their parameters.

A loss such as beta-DPO judges a batch against a running mean m_i of earlier ones. Kept by every
agent alone it would follow that agent's own pairs only. Here it travels at the end of each message
and is mixed by the weights of the round,

    m_i <- (w_ii s_i + sum_j w_ij s_j) / (w_ii + sum_j w_ij) + (m_i - s_i),

where s_i is m_i as it was when the message left. Where every row sums to one, as it does for
doubly stochastic weights and for the mean of a server, this is the mixing of the parameters. The
statistic is linear in the batches, so mixing commutes with its update. That it is shared this way
is our reading: beta-DPO has one machine in mind.
"""

from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor

from decdpo.algorithms.base import Algorithm, Needs
from decdpo.algorithms.wrappers.within import extended
from decdpo.messages import Inbox


@dataclass(frozen=True)
class Running:
    """The algorithm ``inner``, whose agents share the running statistic of their loss.

    The state is ``inner``'s with one more field, ``running`` : (1,) float64, m_i, on the CPU.
    """

    inner: Algorithm

    @property
    def needs(self) -> Needs:
        """What ``inner`` needs."""
        return self.inner.needs

    def init(self, x: Tensor) -> Any:
        """Return the state of an agent that starts at ``x`` (P,); m_i = 0."""
        state = self.inner.init(x)
        return extended(state, "Running", running=torch.zeros(1, dtype=torch.float64))

    def message_size(self, num_shared: int) -> int:
        """Return M of ``inner`` and ``TAIL`` more for m_i; 0 if nothing travels."""
        size = self.inner.message_size(num_shared)
        return size and size + TAIL

    def local_step(self, state: Any, grad: Tensor, lr: float) -> None:
        """Take ``inner``'s local step."""
        self.inner.local_step(state, grad, lr)

    def message(self, state: Any) -> Tensor:
        """Return ``inner``'s message with m_i at its end, (M,)."""
        message = self.inner.message(state)
        return torch.cat((message, _tail(state.running, message)))

    def mix(self, state: Any, inbox: Inbox) -> None:
        """Mix as ``inner`` does, and the statistic likewise."""
        self.inner.mix(state, inbox.without_last(TAIL))
        state.running.copy_(mixed(state.running, inbox))

    def restart(self, state: Any, rounds: int, mean: Tensor | None) -> None:
        """Restart as ``inner`` does."""
        self.inner.restart(state, rounds, mean)


def model_in_message(algorithm: Algorithm, num_shared: int) -> slice | None:
    """Return where in a message the shared parameters lie, None if it does not hold them."""
    end = algorithm.message_size(num_shared)
    while hasattr(algorithm, "inner"):
        if isinstance(algorithm, Running):
            end -= TAIL
        algorithm = algorithm.inner
    return slice(end - num_shared, end) if algorithm.needs.sends_model else None


def mixed(running: Tensor, inbox: Inbox) -> Tensor:
    """Return the statistic ``running`` (1,) after ``inbox``, whose messages have arrived."""
    if not inbox.messages:
        return running
    received = torch.zeros_like(running)
    for message in inbox.messages:
        received += message.weight * _statistic(message.body)
    weight = sum(message.weight for message in inbox.messages)
    own = 1.0 - weight if isnan(inbox.own) else inbox.own
    if not inbox.sent.numel():
        return received / weight
    sent = _statistic(inbox.sent)
    return (own * sent + received) / (own + weight) + (running - sent)


TAIL = 8
"""Values at the end of a message whose sum is the statistic, or its bytes in a message of bytes.
A sum may be averaged by a server like the parameters, and loses no digit in a narrow type: eight
bfloat16 values hold the 53 bits of a float64."""


def _tail(running: Tensor, message: Tensor) -> Tensor:
    """Return the (TAIL,) values that stand for ``running`` (1,) at the end of ``message``."""
    if message.dtype == torch.uint8:
        return running.view(torch.uint8).to(message.device)
    terms, rest = [], running
    for _ in range(TAIL):
        terms.append(rest.to(message.dtype))
        rest = rest - terms[-1].double()
    return torch.cat(terms).to(message.device)


def _statistic(message: Tensor) -> Tensor:
    """Return the (1,) statistic at the end of ``message``."""
    tail = message[-TAIL:].cpu()
    if tail.dtype == torch.uint8:
        return tail.clone().view(torch.float64)
    return tail.double().sum().reshape(1)
