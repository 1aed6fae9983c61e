"""How much work the training of a language model does: tokens, and floating-point operations."""

import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.policies.lm.adapters.personal import personal_of
from decdpo.policies.lm.forward.packing import packed_size
from decdpo.policies.tokens import TokenizedPairs

PEAKS = (
    ("H100 PCIe", {torch.bfloat16: 756e12, torch.float32: 51e12}),
    ("H100", {torch.bfloat16: 989e12, torch.float32: 67e12}),
    ("H200", {torch.bfloat16: 989e12, torch.float32: 67e12}),
    ("GH200", {torch.bfloat16: 989e12, torch.float32: 67e12}),
    ("A100", {torch.bfloat16: 312e12, torch.float32: 19.5e12}),
    ("L40S", {torch.bfloat16: 362e12, torch.float32: 91.6e12}),
    ("A40", {torch.bfloat16: 150e12, torch.float32: 37.4e12}),
    ("V100", {torch.float32: 15.7e12}),
)
"""Operations a second of GPUs, dense and without TF32, by a part of their names."""


@dataclass(frozen=True)
class Work:
    """What a step does.

    pairs : trained on. logical : their tokens, each answer with its prompt, as two rows have them.
    physical : tokens that go through the model. flops : of forward and backward pass over these;
    what is computed again to save memory does not count.
    """

    pairs: int = 0
    logical: int = 0
    physical: int = 0
    flops: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.pairs + other.pairs,
            self.logical + other.logical,
            self.physical + other.physical,
            self.flops + other.flops,
        )


@dataclass(frozen=True)
class Sizes:
    """What the operations of a model are counted by.

    body : parameters that every token meets in a product. head : those that a scored token meets.
    layers, width : of the attention: L, and the values of all its heads together. frozen_body,
    frozen_head : how many of ``body`` and ``head`` are not trained.
    """

    body: int
    head: int
    layers: int
    width: int
    frozen_body: int = 0
    frozen_head: int = 0

    @classmethod
    def of(cls, module: Any) -> "Sizes":
        """Count those of a causal language model of transformers; its values are not looked at."""
        config, embedding = module.config.get_text_config(), module.get_input_embeddings().weight
        output, own = module.get_output_embeddings().weight, personal_of(module)
        last = [] if own is None else list(own.parameters())
        if own is None or own.head is None:
            last.append(output)
        apart = {id(p) for p in (embedding, output, *last)}
        body, frozen_body = _counted(p for p in module.parameters() if id(p) not in apart)
        head, frozen_head = _counted(last)
        heads = getattr(config, "num_attention_heads", 1)
        each = getattr(config, "head_dim", None) or config.hidden_size // heads
        width = heads * each
        return cls(body, head, config.num_hidden_layers, width, frozen_body, frozen_head)


def _counted(parameters: Iterable[Tensor]) -> tuple[int, int]:
    """Return the values of all matrices among ``parameters``, and of the frozen ones alone."""
    sizes = [(p.numel(), p.requires_grad) for p in parameters if p.dim() > 1]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if not trained)


def step_work(sizes: Sizes, tokens: TokenizedPairs, rows: np.ndarray, *, shared: bool) -> Work:
    """Return the work of a step on the pairs ``rows`` (B,).

    shared : whether both answers of a pair share one copy of its prompt.
    """
    prompt, chosen, rejected = np.diff(tokens.edges[rows], axis=1).T.astype(np.int64)
    logical = int((2 * prompt + chosen + rejected).sum())
    scored = int((chosen + rejected).sum())
    if shared:
        physical = int(packed_size(tokens, rows).sum())
        seen = prompt**2 + 2 * prompt * (chosen + rejected) + chosen**2 + rejected**2
    else:
        physical = logical
        seen = (prompt + chosen) ** 2 + (prompt + rejected) ** 2
    # 2 operations a product of two numbers, 3 products: forward, and for both gradients; of a
    # frozen matrix only for that of its input. A token sees half of the others, in scores and in
    # what they weigh.
    attention = 3 * 4 * sizes.layers * sizes.width * float(seen.sum()) / 2
    passed = sizes.body * physical + sizes.head * scored
    frozen = sizes.frozen_body * physical + sizes.frozen_head * scored
    flops = 6.0 * passed - 2.0 * frozen + attention
    return Work(len(rows), logical, physical, flops)


def known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations a second that a GPU can do; None for a CPU, or where it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS if part in name), {})
    return found.get(dtype)


def peak_memory() -> int:
    """Return the most bytes that this process has had so far, in memory or on its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return int(max(host, device))
