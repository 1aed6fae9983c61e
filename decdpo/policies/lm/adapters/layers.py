"""Low-rank adapters: what is trained beside the frozen layers of a language model.

    y = W x + c + s B A x,    A (r, k), B (d, r),    s = alpha / r, or alpha / sqrt(r)

with dropout of the x that A sees, if wanted (``dropout``).

B begins at 0, so that an adapted model begins as the base model, to the bit. Neither W + s B A nor
a gradient of W is ever formed. Which factors are trained, which travel and which stay, is the rule
by which agents mix:

    factors   A and B travel and are mixed apart
    freeze_a  B travels; A stays as it began, the same for all agents, so that B A is mixed exactly
    share_a   A travels; each agent keeps a B of its own
    core      R (r, r) travels, of s B R A between frozen frames B = U_r S_r and A = V_r^T, from the
              singular value decomposition of W; R begins at 0
    svd       A and B travel; their products are mixed, and cut back to rank r

References: Hu et al., "LoRA: low-rank adaptation of large language models", 2021; Kalajdzievski, "A
rank stabilization scaling factor for fine-tuning with LoRA", 2023; Sun et al., "Improving LoRA in
privacy-preserving federated learning", 2024 (freeze_a); Guo et al., "Selective aggregation for
low-rank adaptation in federated learning", 2024 (share_a); Balazy et al., "LoRA-XS", 2024, and
Singhal et al., "Fed-SB", 2025 (core; they begin R near 0, we at 0, for step 0 is the reference).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from decdpo.errors import PolicyError
from decdpo.params.flat import Tag
from decdpo.policies.lm.adapters.dropout import Dropout
from decdpo.rng import Stream, generator

A, B, CORE = "lora_A", "lora_B", "lora_core"
"""Names of the parameters of an adapted layer."""

_TAGS = {
    "factors": {A: Tag.SHARED, B: Tag.SHARED},
    "svd": {A: Tag.SHARED, B: Tag.SHARED},
    "freeze_a": {A: Tag.FROZEN, B: Tag.SHARED},
    "share_a": {A: Tag.SHARED, B: Tag.PERSONAL},
    "core": {A: Tag.FROZEN, B: Tag.FROZEN, CORE: Tag.SHARED},
}


@dataclass(frozen=True)
class LoraOptions:
    """What adapters a model gets.

    rank : r. alpha : the scaling is alpha / r, with ``rank_stabilised`` alpha / sqrt(r).
    targets : patterns of the layers' names, as the shell knows them, or ends of them; empty is
    every linear layer but the output head. mix : of ``names.MIX_RULES``. seed : of A
    and of dropout. dropout : the chance of a value that A sees to be left out in a local step.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    rank_stabilised: bool = False
    mix: str = "factors"
    seed: int = 0
    dropout: float = 0.0

    @property
    def scaling(self) -> float:
        """s, the factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with its adapter, in the place of the layer and under its names.

    base : ``nn.Linear``, or transformers' ``Conv1D``, which holds its weight the other way round;
    its parameters become those of this module. inputs, outputs : k, d. place : its number among the
    adapted layers. dropout : what draws masks for all of them, None without.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_core: nn.Parameter | None

    def __init__(
        self,
        base: Any,
        rank: int,
        scaling: float,
        core: bool,
        place: int = 0,
        dropout: Dropout | None = None,
    ) -> None:
        super().__init__()
        self._place, self._dropout = place, dropout
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.bias = None
        if base.bias is not None:
            self.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
        self.transposed = not isinstance(base, nn.Linear)
        shape = self.weight.shape[::-1] if self.transposed else self.weight.shape
        self.out_features, self.in_features = shape
        self.rank, self.scaling = rank, scaling
        self.lora_A = self._zeros(rank, self.in_features)
        self.lora_B = self._zeros(self.out_features, rank)
        self.lora_core = self._zeros(rank, rank) if core else None

    def _zeros(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(*shape, dtype=torch.float32, device=self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., d) for ``x`` (..., k)."""
        seen = x if self._dropout is None else self._dropout(x, self._place)
        low = linear(seen, self.lora_A)
        if self.lora_core is not None:
            low = linear(low, self.lora_core)
        return self._base(x) + linear(low, self.lora_B) * self.scaling

    def _base(self, x: Tensor) -> Tensor:
        """Return what the layer gave before it was adapted, to the bit."""
        if not self.transposed:
            return linear(x, self.weight, self.bias)
        assert self.bias is not None
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.out_features)


def adapt(
    module: Any, options: LoraOptions, dropout: Dropout | None = None
) -> dict[str, Tag]:
    """Give the layers of a causal language model adapters; return the tags of all parameters.

    All that the model had is frozen. Values are set by ``begin``. dropout : what draws its masks.

    Raises ``PolicyError`` if a pattern names no linear layer, or the rank is larger than a layer.
    """
    tags = {name: Tag.FROZEN for name, _ in module.named_parameters()}
    core = options.mix == "core"
    for place, name in enumerate(_targets(module, options.targets)):
        layer = module.get_submodule(name)
        adapted = AdaptedLinear(layer, options.rank, options.scaling, core, place, dropout)
        least = min(adapted.in_features, adapted.out_features)
        if options.rank > least:
            raise PolicyError(
                f"policy.lora.rank = {options.rank}, but the layer {name} has rank {least}",
                f"set policy.lora.rank = {least} or less, or leave it out of policy.lora.targets",
            )
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, adapted)
        tags |= {f"{name}.{part}": tag for part, tag in _TAGS[options.mix].items()}
    return tags


def layers(module: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield every adapted layer with its name, in the order of the model."""
    for name, part in module.named_modules():
        if isinstance(part, AdaptedLinear):
            yield name, part


def begin(module: nn.Module, options: LoraOptions) -> None:
    """Set the adapters to where they begin: A drawn from ``seed``, B = 0; frames and R = 0."""
    for place, (_, layer) in enumerate(layers(module)):
        if layer.lora_core is None:
            rng = generator(options.seed, Stream.ADAPTER, round=place)
            bound = 1.0 / math.sqrt(layer.in_features)
            drawn = rng.uniform(-bound, bound, size=tuple(layer.lora_A.shape))
            layer.lora_A.data.copy_(torch.from_numpy(drawn.astype(np.float32)))
            layer.lora_B.data.zero_()
        else:
            left, right = frames(layer.weight.t() if layer.transposed else layer.weight, layer.rank)
            layer.lora_B.data.copy_(left)
            layer.lora_A.data.copy_(right)
            layer.lora_core.data.zero_()


def frames(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U_r S_r (d, r) and V_r^T (r, k) float64 of a weight (d, k).

    The largest component of a left singular vector is positive.
    """
    matrix = weight.detach().double().cpu().numpy()
    if 4 * rank < min(matrix.shape):
        from scipy.sparse.linalg import svds

        u, s, v = svds(matrix, k=rank, v0=np.ones(min(matrix.shape)))
        order = np.argsort(-s)
        u, s, v = u[:, order], s[order], v[order]
    else:
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        u, s, v = u[:, :rank], s[:rank], v[:rank]
    signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(rank)])
    return torch.from_numpy(u * s * signs), torch.from_numpy(v * signs[:, None])


def _targets(module: Any, patterns: Sequence[str]) -> list[str]:
    """Return the names of the layers that get adapters, in the order of the model."""
    head = module.get_output_embeddings()
    linears = [name for name, part in module.named_modules() if is_linear(part)]
    if not patterns:
        return [name for name in linears if module.get_submodule(name) is not head]
    found = {name for name in linears for pattern in patterns if matches(name, pattern)}
    for pattern in patterns:
        if not any(matches(name, pattern) for name in linears):
            ends = sorted({name.rpartition(".")[2] for name in linears})
            raise PolicyError(
                f"policy.lora.targets has {pattern!r}, which names no linear layer of the model",
                "its linear layers are " + ", ".join(ends),
            )
    if any(module.get_submodule(name) is head for name in found):
        raise PolicyError(
            "policy.lora.targets names the output head, which has no adapter",
            "leave it out: an empty list is every linear layer but the head",
        )
    return [name for name in linears if name in found]


def is_linear(part: nn.Module) -> bool:
    """Say whether a module is a layer that can get an adapter."""
    return type(part) is nn.Linear or type(part).__name__ == "Conv1D" and hasattr(part, "nf")


def matches(name: str, pattern: str) -> bool:
    """Say whether ``pattern`` names the layer ``name``: as a whole, by its end, or with * and ?."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
