"""From a configuration to adapters and personal parts, and how the latter are restrained."""

from pathlib import Path
from typing import TYPE_CHECKING

from decdpo.config import Config, policies
from decdpo.params.factors import Factors
from decdpo.params.optim import Optimizer
from decdpo.params.restraint import Restrained, Restraint
from decdpo.policies.base import Policy

if TYPE_CHECKING:
    from decdpo.policies.lm.adapters.layers import LoraOptions
    from decdpo.policies.lm.adapters.personal import PersonalOptions


def make_lora(section: policies.Lora, seed: int) -> "LoraOptions":
    """Return what adapters the section ``[policy.lora]`` asks for; ``seed`` is of A.

    Raises ``PolicyError`` for a folder of PEFT that cannot be used.
    """
    if section.adapter:
        from decdpo.policies.lm.adapters.folder import read_options

        return read_options(Path(section.adapter), section.mix, seed)
    from decdpo.policies.lm.adapters.layers import LoraOptions

    return LoraOptions(
        section.rank,
        section.alpha or 2.0 * section.rank,
        section.targets,
        section.rank_stabilised,
        section.mix,
        seed,
        section.dropout,
    )


def make_personal(section: policies.Personal, seed: int) -> "PersonalOptions | None":
    """Return which parts the section ``[policy.personal]`` gives each agent, None without any."""
    if not section.on:
        return None
    from decdpo.policies.lm.adapters.personal import PersonalOptions

    return PersonalOptions(
        section.head,
        section.head_rank,
        section.reward,
        section.bottleneck,
        section.activation,
        seed,
    )


def factors_of(policy: Policy) -> tuple[Factors, ...]:
    """Return where the factors of adapters lie in the shared vector, if both of them travel."""
    return tuple(policy.factors) if hasattr(policy, "factors") else ()


def restrained(optimizer: Optimizer, config: Config, policy: Policy) -> Optimizer:
    """Return the optimizer, its steps on personal parts as ``[policy.personal]`` restrains them."""
    section, layout = config.policy, policy.layout
    personal = section.personal if isinstance(section, policies.CausalLM) else policies.Personal()
    asked = {
        "head": (personal.head_lr_factor, personal.head_weight_decay),
        "reward": (personal.reward_lr_factor, personal.reward_weight_decay),
        "bottleneck": (personal.bottleneck_lr_factor, personal.bottleneck_weight_decay),
    }
    if all(pair == (1.0, 0.0) for pair in asked.values()):
        return optimizer
    from decdpo.policies.lm.adapters.personal import PARAMETERS

    start = policy.initial()
    restraints = [
        Restraint(place, share, decay, start[place].clone() if start[place].any() else None)
        for part, (share, decay) in asked.items()
        for name in PARAMETERS[part]
        if (share, decay) != (1.0, 0.0) and name in layout.names
        for place in (layout.place(name),)
    ]
    return Restrained(optimizer, tuple(restraints))
