"""CHOCO-SGD: gossip of compressed differences, with the compression's errors fed back.

Every agent keeps a public copy xhat_i of its model, which its neighbours know, too. What travels is
the code of the difference between the two, so that what a lossy code leaves out is part of the next
difference and arrives later. With a codec C and a consensus step gamma in (0, 1]:

    x_i <- x_i - eta g_i                               E local steps                     (1)
    q_i = C(x_i - xhat_i)                              the message                       (2)
    xhat_j <- xhat_j + q_j                             on every listener of j, and on j  (3)
    x_i <- x_i + gamma sum_j w_ij (xhat_j - xhat_i)                                      (4)

As (4) needs only the sum, an agent keeps that instead of its neighbours' copies,

    s_i = sum_j w_ij (xhat_j - xhat_i),   s_i <- s_i + sum_j w_ij (q_j - q_i),           (5)

three vectors in all whatever its degree. This needs weights that never change: with others, s_i
would hold yesterday's. All agents begin at one model x_0, which they know of each other, so
xhat_i = x_0 and s_i = 0; the source has xhat_i = 0. With ``overlap = true`` the message (2) leaves
before the local steps (1), as DSGD's does; (3) to (5) stay.

When agents are lost, s_i was summed under weights that hold no more, and new neighbours do not know
each other's public copies. The round of the loss is not mixed: its codes are dropped, its local
steps stand. Then all that are left (a set L) agree on one public copy again, as at the start: the
mean of their models, which is near each of them,

    xhat_i <- 1/|L| sum_L x_j,    s_i <- 0,    i in L.                                   (6)

sum_i x_i moves by the gradients alone, however lossy the code is, if W is doubly stochastic (the
source also wants it symmetric). With the identity and gamma = 1 this is DSGD. A codec with
contraction constant delta needs a gamma that shrinks with delta: differences must not be mixed
faster than they are sent. The proof asks for a gamma of order delta (1 - rho)^2, far below what
works; gamma = delta has held on quadratics with every codec, 2 delta diverged with random-k.

References: Koloskova, Stich and Jaggi, "Decentralized stochastic optimization and gossip algorithms
with compressed communication", 2019, CHOCO-SGD for (1) to (4), its memory-efficient form for (5);
Koloskova, Lin, Stich and Jaggi, "Decentralized deep learning with arbitrary communication
compression", 2020.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from decdpo.algorithms.base import Needs
from decdpo.algorithms.parts import InParts, Part, part_of
from decdpo.codecs.base import Codec
from decdpo.messages import Inbox
from decdpo.params.optim import Optimizer, OptimState


@dataclass
class ChocoState:
    """What an agent remembers.

    x : (P,) the parameters. optim : of the local optimizer. public : (M,) xhat_i. pull : (M,) s_i.
    round : how many rounds it has mixed, for the codec's random numbers.
    """

    x: Tensor
    optim: OptimState
    public: Tensor
    pull: Tensor
    round: int = 0


@dataclass(frozen=True)
class Choco(InParts[ChocoState]):
    """CHOCO-SGD, eqs. (1) to (5).

    optimizer : takes the local steps. num_shared : M. codec : C, for vectors of M values, or of
    those of the largest part. gamma : the consensus step. codec_below : C for one value less, which
    other parts may have.

    Messages are uint8: the exchange counts bytes, ``message_size`` of them.

    The loss of an agent restarts the public copies: s_i was summed under weights that do not hold
    any more.
    """

    needs: ClassVar[Needs] = Needs(
        fixed_weights=True,
        every_message=True,
        sends_bytes=True,
        plain_steps=True,
        in_parts=True,
        against_products="its codec adds up differences of A and B, whose coordinates turn with "
        "every cut",
        instead="dsgd",
        on_loss="restarts",
    )

    optimizer: Optimizer
    num_shared: int
    codec: Codec
    gamma: float
    codec_below: Codec | None = None
    _spare: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def init(self, x: Tensor) -> ChocoState:
        """Return the state of an agent that starts at ``x`` (P,), the same for all agents."""
        shared = x[: self.num_shared]
        return ChocoState(x, self.optimizer.init(x), shared.clone(), torch.zeros_like(shared))

    def message_size(self, num_shared: int) -> int:
        """Return the bytes of a code."""
        return self.codec.nbytes

    def local_step(self, state: ChocoState, grad: Tensor, lr: float) -> None:
        """x_i <- x_i - eta g_i, or the optimizer's version of it."""
        self.optimizer.step(state.x, state.optim, grad, lr)

    def part_size(self, size: int) -> int:
        """Return the bytes of the code of ``size`` values."""
        return self._codec(size).nbytes

    def message(self, state: ChocoState) -> Tensor:
        """Return the code of x_i - xhat_i, uint8 (nbytes,), in a buffer that all agents use."""
        return self.part_message(state, part_of(self.num_shared, 0, 1))

    def part_message(self, state: ChocoState, part: Part) -> Tensor:
        """Return the code of ``part`` of x_i - xhat_i, in a buffer that all agents use."""
        device, codec = str(state.x.device), self._codec(part.size)
        if device not in self._spare:
            code = torch.empty(self.codec.nbytes, dtype=torch.uint8, device=device)
            self._spare[device] = state.public.new_empty(self.codec.size), code
        difference, code = self._spare[device]
        difference, code = difference[: part.size], code[: codec.nbytes]
        torch.sub(state.x[part.values], state.public[part.values], out=difference)
        codec.encode(difference, code, state.round)
        return code

    def mix_part(self, state: ChocoState, inbox: Inbox, part: Part) -> None:
        """Move the public copy and the pull by what was sent, and x_i by gamma times the pull."""
        inbox.settle()
        codec, round = self._codec(part.size), state.round
        public, pull = state.public[part.values], state.pull[part.values]
        codec.add(inbox.sent, public, round)
        codec.add(inbox.sent, pull, round, -sum(message.weight for message in inbox.messages))
        for message in inbox.messages:
            codec.add(message.body, pull, round, message.weight)
        state.x[part.values].add_(pull, alpha=self.gamma)
        state.round += 1

    def _codec(self, size: int) -> Codec:
        """Return C for ``size`` values."""
        if size == self.codec.size:
            return self.codec
        assert self.codec_below is not None
        return self.codec_below

    def restart(self, state: ChocoState, rounds: int, mean: Tensor | None) -> None:
        """xhat_i <- the mean of all models that are left, s_i <- 0, eq. (6)."""
        assert mean is not None
        state.public.copy_(mean)
        state.pull.zero_()
        state.round = rounds
