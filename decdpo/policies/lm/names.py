"""Names that a configuration chooses from, without what computes them."""

MIX_RULES = ("factors", "freeze_a", "core", "svd", "share_a")
"""How agents mix their adapters; see ``adapters``."""

HEADS = ("none", "full", "low_rank")
"""Values of ``policy.personal.head``: the model's own, a copy of it, or a low-rank change of it."""

ACTIVATIONS = ("gelu", "silu", "relu", "tanh")
"""Values of ``policy.personal.activation``."""
