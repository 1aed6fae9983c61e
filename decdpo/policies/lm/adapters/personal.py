"""The parts of a language model that are each agent's own: bottleneck, output head, reward head.

Of a scored position's hidden state h, after the model's last layer norm,

    h'          = h + U act(D h)                   residual bottleneck, D (b, H), U (H, b)
    log pi(y|.) = log softmax(W_i h')_y            W_i of the agent: a copy of W, or W + P Q
    r           = v . h'                           of the last position of an answer

U, P and v begin at 0 and a copy of W as W, so that the model begins as the base model, to the bit,
and every explicit reward as 0. D and Q are drawn from the seed, alike for all agents.

FedPDPO (arXiv:2603.19741) is known to us by its abstract. It names a personal language-model head,
an explicit reward head and a bottleneck adapter beside shared LoRA; their shapes and places, act,
and the starts above are our reading. So is the last position: the state that has seen the whole
answer and predicts its end. For a state of its own the end token would have to be fed as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, silu

from decdpo.policies.lm.names import ACTIVATIONS, HEADS
from decdpo.rng import Stream, generator

NAME = "personal"
"""The name under which a model holds its personal parts."""

PARAMETERS = {
    "head": (f"{NAME}.head", f"{NAME}.head_in", f"{NAME}.head_out"),
    "reward": (f"{NAME}.reward",),
    "bottleneck": (f"{NAME}.down", f"{NAME}.up"),
}
"""The parameters that each part may have, by the name of its switch."""

_ACTS: dict[str, Callable[[Tensor], Tensor]] = dict(
    zip(ACTIVATIONS, (gelu, silu, relu, torch.tanh), strict=True)
)
_PLACE = 1 << 20
"""Address of the random numbers here; those of adapters are numbered from 0."""


@dataclass(frozen=True)
class PersonalOptions:
    """Which parts a model gets; each is a switch of its own.

    head : of ``names.HEADS``. head_rank : r of a head W + P Q. reward : whether there is an
    explicit reward head. bottleneck : its width b; 0 is none. activation : of
    ``names.ACTIVATIONS``. seed : of what is drawn.
    """

    head: str = HEADS[0]
    head_rank: int = 8
    reward: bool = False
    bottleneck: int = 0
    activation: str = ACTIVATIONS[0]
    seed: int = 0

    @property
    def words(self) -> dict[str, str]:
        """What scores depend on besides values, as words by name."""
        rank = str(self.head_rank) if self.head == "low_rank" else "0"
        return {
            "head": self.head,
            "head_rank": rank,
            "reward": str(self.reward).lower(),
            "bottleneck": str(self.bottleneck),
            "activation": self.activation if self.bottleneck else "none",
        }


class PersonalParts(nn.Module):
    """The personal parts of one agent; those that are switched off are None.

    head : (V, H) output embeddings of the model.
    """

    down: nn.Parameter | None
    up: nn.Parameter | None
    head: nn.Parameter | None
    head_in: nn.Parameter | None
    head_out: nn.Parameter | None
    reward: nn.Parameter | None

    def __init__(self, head: Tensor, options: PersonalOptions) -> None:
        super().__init__()
        vocabulary, width = head.shape
        self.options = options
        self._act = _ACTS[options.activation]
        bent, low = options.bottleneck, options.head == "low_rank"
        rank = options.head_rank

        def zeros(there: bool, *shape: int) -> nn.Parameter | None:
            if not there:
                return None
            return nn.Parameter(torch.zeros(*shape, dtype=torch.float32, device=head.device))

        self.down = zeros(bent > 0, bent, width)
        self.up = zeros(bent > 0, width, bent)
        self.head = zeros(options.head == "full", vocabulary, width)
        self.head_in = zeros(low, rank, width)
        self.head_out = zeros(low, vocabulary, rank)
        self.reward = zeros(options.reward, width)
        with torch.no_grad():
            if self.head is not None:
                self.head.copy_(head)
            for place, drawn in enumerate((self.down, self.head_in)):
                if drawn is not None:
                    rng = generator(options.seed, Stream.ADAPTER, round=_PLACE + place)
                    bound = 1.0 / np.sqrt(width)
                    values = rng.uniform(-bound, bound, size=tuple(drawn.shape))
                    drawn.copy_(torch.from_numpy(values.astype(np.float32)))

    def bent(self, states: Tensor) -> Tensor:
        """Return h' (A, H) of the hidden states h (A, H)."""
        if self.down is None or self.up is None:
            return states
        return states + linear(self._act(linear(states, self.down)), self.up)

    def rewards(self, states: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Return the explicit rewards (2 B,) float32 of answers that lie end to end.

        states : (A, H) of their positions. lengths : 2 B numbers of positions; an answer without
        any has the reward 0.
        """
        assert self.reward is not None
        sizes = torch.tensor(lengths, device=states.device)
        last = states[(sizes.cumsum(0) - 1).clamp(min=0)]
        return (last @ self.reward).float() * (sizes > 0)

    def lowered(self, states: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return Q h' (A, r) and P (V, r) of a low-rank head, None of another."""
        if self.head_in is None or self.head_out is None:
            return None
        return linear(states, self.head_in), self.head_out


def attach(module: nn.Module, options: PersonalOptions, head: Tensor) -> list[str]:
    """Give a model its personal parts, as they begin; return the names of their parameters."""
    parts = PersonalParts(head.detach(), options)
    module.add_module(NAME, parts)
    return [f"{NAME}.{name}" for name, _ in parts.named_parameters()]


def personal_of(module: nn.Module) -> PersonalParts | None:
    """Return the personal parts of a model, None if it has none."""
    found = getattr(module, NAME, None)
    return found if isinstance(found, PersonalParts) else None
