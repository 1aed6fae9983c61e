"""The optimizer and its step size where ``[optim]`` leaves them out: they depend on the policy.

The log-linear policy takes plain gradient steps, with a step size that follows from how its
features are scaled. A language model diverges with that one and takes AdamW. What is found here
stands in the effective configuration, and so in the folder of a run, as if it had been given.
"""

from collections.abc import Mapping
from typing import Any

from decdpo.config.policies import CausalLM
from decdpo.config.schema import Policy
from decdpo.errors import ConfigError

WHOLE_LR, ADAPTERS_LR = 1e-5, 2e-4
"""Step sizes of AdamW for all weights of a language model, and for its adapters alone."""


def with_usual_steps(table: Mapping[str, Any], policy: Policy) -> Mapping[str, Any]:
    """Return the table of ``[optim]`` with the kind and the step size that suit ``policy``.

    What the table names stays. Where nothing depends on the policy, nothing is added: those are the
    defaults of the schema.

    Raises ``ConfigError`` for plain steps of a language model without their size.
    """
    if not isinstance(policy, CausalLM):
        return table
    kind = table.get("kind", "adamw")
    if kind == "adamw":
        return {"kind": kind, "lr": ADAPTERS_LR if policy.lora.on else WHOLE_LR, **table}
    if kind == "sgd" and "lr" not in table:
        raise ConfigError(
            "optim.lr is not given, and optim.kind = 'sgd' has no step size that suits every "
            "language model",
            "set optim.lr, or remove optim.kind, for AdamW",
        )
    return table
