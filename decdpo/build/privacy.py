"""From a configuration to clipped and noised gradients, and to what counts the privacy spent."""

from collections.abc import Sequence

from decdpo.config import Config, policies
from decdpo.config.privacy import DpSgd
from decdpo.data.sampling import EpochSampler, PoissonSampler
from decdpo.errors import ConfigError
from decdpo.losses.base import couples_pairs
from decdpo.metrics.privacy import Spent, require_accountant
from decdpo.policies.objective import Objective
from decdpo.policies.private import PrivateGradients
from decdpo.run import Agent, Sampler


def make_sampler(config: Config, agent: int, num_train: int) -> Sampler:
    """Return what says which of its ``num_train`` pairs an agent sees."""
    sampler = PoissonSampler if config.privacy.on else EpochSampler
    return sampler(config.run.seed, agent, num_train)


def make_privacy(
    config: Config, objective: Objective, agents: Sequence[Agent]
) -> PrivateGradients | None:
    """Return what clips and noises the gradients, None where they stay as they are.

    agents : of this process. Raises ``ConfigError`` for a loss or data whose gradient of one pair
    depends on others, ``EnvironmentFault`` without the accountant.
    """
    section = config.privacy
    if not isinstance(section, DpSgd):
        return None
    require_accountant()
    by_pair = not isinstance(config.policy, policies.CausalLM)
    if by_pair and couples_pairs(objective.loss):
        raise ConfigError(
            f"privacy.kind = {section.kind!r} clips the gradient of each pair, and with loss.kind "
            f"= {config.loss.kind!r} that depends on the other pairs of its batch",
            "choose another loss, such as dpo",
        )
    if any(agent.data.weight is not None for agent in agents):
        raise ConfigError(
            f"privacy.kind = {section.kind!r} does not suit weighted pairs: a weight counts by the "
            "mean of all weights, which would tell of every pair",
            "shard the source without weights",
        )
    return PrivateGradients(
        objective, section.clip, section.noise, config.data.batch_size, config.run.seed, by_pair
    )


def make_spent(config: Config, pairs: Sequence[int]) -> Spent | None:
    """Return what counts the privacy spent; pairs : training pairs of every agent, (n,)."""
    section = config.privacy
    if not isinstance(section, DpSgd):
        return None
    size = config.data.batch_size
    shares = {agent: min(size, count) / count for agent, count in enumerate(pairs)}
    return Spent(shares, section.noise, section.delta)
