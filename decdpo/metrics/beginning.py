"""Where an agent begins that has no model of its own: at the mean of its neighbours' models.

Of adapters whose A and B both travel the mean is that of what the run mixes:

    svd       of the products B A, cut back to rank r as a round does
    factors   of A and of B, as a round does, which misses of the mean product the interference
              (``params.factors``); how much is said. Any agent that takes part in a round is moved
              towards this mean, so that one which begins there is as near to the others as can be

The other rules let one factor travel, of which the product is linear: the mean is exact.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from decdpo.algorithms.base import Algorithm
from decdpo.algorithms.wrappers.products import ProductMixing
from decdpo.algorithms.wrappers.within import wrapper_of
from decdpo.comm.world import World
from decdpo.metrics.evaluation import mean_of
from decdpo.metrics.interference import relative
from decdpo.params.factors import interference
from decdpo.policies.base import Policy
from decdpo.run import Agent


class Beginning(NamedTuple):
    """A mean of models (M,), and what of their mean products it misses, relative to these."""

    model: Tensor
    missed: float = 0.0


def of_factors(missed: float) -> str:
    """Return what a user should know of a mean of factors, "" if it misses nothing."""
    if not missed:
        return ""
    return f" (of factors, which misses {100 * missed:.2g}% of the mean of their products)"


def mean_beginning(
    world: World,
    algorithm: Algorithm[Any],
    policy: Policy,
    agents: Sequence[Agent],
    some: Sequence[int],
) -> Beginning:
    """Return the mean of the models of ``some`` agents. Collective.

    agents : those of this process, of which some may be among them.
    """
    factors = tuple(getattr(policy, "factors", ()))
    if not factors or len(some) == 1:
        return Beginning(mean_of(world, agents, some))
    models = [mean_of(world, agents, (agent,)) for agent in some]
    mixing = wrapper_of(algorithm, ProductMixing)
    if mixing is not None:
        return Beginning(mixing.mean(models))
    weights = [1 / len(models)] * len(models)
    total = sum((np.square(interference(weights, models, f)) for f in factors), np.zeros(3))
    return Beginning(mean_of(world, agents, some), relative(total).get("lora/interference", 0.0))
