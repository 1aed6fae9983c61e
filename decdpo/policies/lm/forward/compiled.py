"""A model whose layers torch compiles: fewer, larger operations, begun with less delay.

One layer is compiled for all, for any number of tokens: on a GPU a step of a small model spends
most of its time with beginning thousands of operations one by one.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from decdpo.errors import EnvironmentFault, PolicyError
from decdpo.policies.lm.forward.choice import AGREEMENT
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.forward.plain import PlainLM
from decdpo.policies.tokens import TokenizedPairs

VARIANTS = 32
"""Ways in which a layer may be compiled; more would mean that each batch is compiled anew."""

TURN_OFF = "leave policy.compile out"


def compile_layers(module: Any, backend: str = "inductor") -> None:
    """Let torch compile the layers of a causal language model of transformers when they are used.

    The first passes forward and backward then take a minute or so. A layer whose compilation fails
    raises; it is not run uncompiled. backend : of ``torch.compile``.

    Raises ``PolicyError`` for a model in which no list of layers is found.
    """
    count = getattr(module.config.get_text_config(), "num_hidden_layers", 0)
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList))
    layers = next((part for part in lists if len(part) == count), None)
    if not layers:
        raise PolicyError(
            f"policy.compile: {type(module).__name__} has no list of {count} layers", TURN_OFF
        )
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, VARIANTS)
    dynamo.config.fail_on_recompile_limit_hit = True
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def compile_scorer(
    scorer: PlainLM | PackedLM, tokens: TokenizedPairs, backend: str = "inductor"
) -> None:
    """Let torch compile the layers of a scorer's model, and score the pairs ``tokens`` with it.

    Raises ``EnvironmentFault`` where torch cannot compile, ``PolicyError`` if what is compiled
    gives other log-probabilities than the model itself.
    """
    module, rows = scorer.module, np.arange(len(tokens.edges))
    agreement = AGREEMENT[next(module.parameters()).dtype]
    with torch.no_grad():
        expected = scorer(tokens, rows)
        if isinstance(scorer, PackedLM):
            from decdpo.policies.lm.forward.apart import apart

            scorer.attend_apart(apart)
        compile_layers(module, backend)
        try:
            found = scorer(tokens, rows)
        except PolicyError as fault:
            raise EnvironmentFault(
                f"policy.compile: torch cannot compile the model here: {fault.what}",
                f"install what it needs (a C++ compiler; on a GPU Triton), or {TURN_OFF}",
            ) from fault
    gap = float(((found - expected).abs() / expected.abs()).max())
    if not gap <= agreement:
        raise PolicyError(
            f"policy.compile: compiled, {type(module).__name__} gives log-probabilities that differ"
            f" by {gap:.1g}, relatively",
            TURN_OFF,
        )
