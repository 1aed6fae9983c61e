"""The memory that a step of a language model takes, known from its configuration alone.

The model is made on the meta device, which has shapes and no values, and runs forward there: what
autograd keeps for the way back is then counted. So a model of any size is measured in seconds.
"""

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from decdpo.policies.lm.forward.attention import SEGMENTS, Repeated, joined
from decdpo.policies.lm.forward.head import CHUNK_VALUES
from decdpo.policies.lm.forward.remade import Kept, Remade, remembering, spare

COUNTED = "decdpo_counted"
"""The name under which transformers finds ``counted_attention``."""


def meta_model(config: Any) -> Any:
    """Return the causal language model of a transformers configuration, without any memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


def activation_bytes(
    module: Any,
    tokens: int,
    dtype: torch.dtype,
    checkpointing: bool = False,
    spared: bool = True,
) -> int:
    """Return the bytes that the backward pass of a row of ``tokens`` tokens needs kept.

    module : of ``meta_model``. checkpointing : whether layers are computed again; then a layer's
    input is kept, and the inside of a single layer. spared : whether what ``remade`` makes again
    is not kept, as on a CPU.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(COUNTED, counted_attention)
    for part in module.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = COUNTED
    module.to(dtype)
    owned = {_storage(own)._cdata for own in (*module.parameters(), *module.buffers())}
    seen: dict[int, torch.UntypedStorage] = {}
    spared = spared and not checkpointing

    def keep(tensor: Tensor) -> Tensor:
        kept = spare(tensor) if spared else Kept(tensor)
        for source in kept.sources if isinstance(kept, Remade) else (kept,):
            storage = _storage(source.tensor)
            if storage._cdata not in owned:
                # Held, so that no other gets its place.
                seen[storage._cdata] = storage
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with remembering() if spared else nullcontext(), hooks:
        module.base_model(
            input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False, segments=None
        )
    whole = sum(storage.nbytes() for storage in seen.values())
    if not checkpointing:
        return whole
    config = module.config.get_text_config()
    layers = config.num_hidden_layers
    inputs = layers * tokens * config.hidden_size * dtype.itemsize
    return inputs + whole // layers


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def head_bytes(
    vocabulary: int, width: int, scored: int, dtype: torch.dtype, trained: bool = True
) -> int:
    """Return the bytes of the head: a chunk of logits and its slopes, and the matrix's gradient.

    trained : otherwise the matrix is frozen, and has none.
    """
    chunk = min(CHUNK_VALUES, scored * vocabulary)
    narrow = chunk * dtype.itemsize if dtype != torch.float32 else 0
    return 2 * 4 * chunk + narrow + (4 * vocabulary * width if trained else 0)


class _Attend(torch.autograd.Function):
    """Keeps what a fused attention keeps: its inputs, its output, a number for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{COUNTED} only stands for {SEGMENTS} where memory is counted")


def counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Return (1, T, heads, D) without values; arguments as of ``attention.segment_attention``."""
    whole = (slice(None),)
    key, value = Repeated(query, key).of(whole), Repeated(query, value).of(whole)
    return joined([_Attend.apply(query, key, value)]), None
