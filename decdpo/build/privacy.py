"""From a configuration to clipped and noised gradients, and to what counts the privacy spent."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from decdpo.config import Config, policies
from decdpo.config.privacy import DpSgd
from decdpo.data.sampling import EpochSampler, PoissonSampler
from decdpo.errors import ConfigError
from decdpo.files import os_fault
from decdpo.losses.base import couples_pairs
from decdpo.metrics.privacy import Spent, require_accountant
from decdpo.policies.objective import Objective
from decdpo.policies.private import PrivateGradients
from decdpo.run import Agent, Sampler

MAKE_ONE = "make one: head -c 32 /dev/urandom > FILE"


def make_sampler(config: Config, agent: int, num_train: int) -> Sampler:
    """Return what says which of its ``num_train`` pairs an agent sees."""
    if config.privacy.on:
        return PoissonSampler(noise_seed(config), agent, num_train)
    return EpochSampler(config.run.seed, agent, num_train)


def noise_seed(config: Config) -> int:
    """Return what noise and private batches are drawn by: the secret of this process if it has one.

    Raises ``ConfigError`` if that cannot be read, or is too short to be one.
    """
    section = config.privacy
    if not isinstance(section, DpSgd) or not section.secret:
        return config.run.seed
    return int.from_bytes(hashlib.sha256(b"noise" + _secret(section.secret)).digest()[:8]) >> 1


def secret_digest(config: Config) -> str:
    """Return what the secret of this process is compared by, "" if it has none. Raises likewise."""
    section = config.privacy
    if not isinstance(section, DpSgd) or not section.secret:
        return ""
    return hashlib.sha256(b"identity" + _secret(section.secret)).hexdigest()


def _secret(path: str) -> bytes:
    try:
        found = Path(path).read_bytes()
    except OSError as fault:
        raise os_fault(
            fault, f"cannot read privacy.secret = {path!r}", remedy=MAKE_ONE, kind=ConfigError
        ) from None
    if len(found) < 16:
        raise ConfigError(
            f"privacy.secret = {path!r} has {len(found)} bytes, which can be guessed", MAKE_ONE
        )
    return found


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
        objective, section.clip, section.noise, config.data.batch_size, noise_seed(config), by_pair
    )


def make_spent(config: Config, pairs: Sequence[int]) -> Spent | None:
    """Return what counts the privacy spent; pairs : training pairs of every agent, (n,)."""
    section = config.privacy
    if not isinstance(section, DpSgd):
        return None
    size = config.data.batch_size
    shares = {agent: min(size, count) / count for agent, count in enumerate(pairs)}
    return Spent(shares, section.noise, section.delta, bool(section.secret))
