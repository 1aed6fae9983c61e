"""One batch that a causal language model has scored, and the way back through the model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decdpo.losses.base import Leaves, PairScores
from decdpo.params.cotangents import paired
from decdpo.params.flat import FlatParams

if TYPE_CHECKING:
    from decdpo.policies.causal_lm import CausalLM


@dataclass
class CausalLMPass:
    """One batch: its log-probabilities and the way back through the model.

    graph : (K, B) the leaves of the scores with their autograd graph; None if it was not wanted, or
    used.
    """

    scores: PairScores
    policy: "CausalLM"
    params: FlatParams
    graph: Tensor | None

    def backward(self, cotangents: Leaves) -> None:
        """Add the gradient to ``params.grad``; once only."""
        if self.graph is None:
            raise ValueError("this pass was made without a gradient, or has given it already")
        self.policy.bind(self.params, need_grad=True)
        slopes = torch.stack([cotangents[name] for name in self.scores.leaves()])
        with torch.enable_grad():
            total = paired(self.graph, slopes)
        total.backward()
        self.graph = None
        self.policy.end_draw()
