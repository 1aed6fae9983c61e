"""Names that a configuration chooses from, without what computes them."""

MIX_RULES = ("factors", "freeze_a", "core", "svd", "share_a")
"""How agents mix their adapters; see ``adapters``."""
