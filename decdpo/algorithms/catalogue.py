"""The class behind each ``kind`` of the section ``[algorithm]``, one line each."""

from typing import Any

from decdpo.algorithms.base import Needs
from decdpo.algorithms.gossip.choco import Choco
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.exact_diffusion import ExactDiffusion
from decdpo.algorithms.gossip.gossip_outer_momentum import GossipOuterMomentum
from decdpo.algorithms.gossip.gradient_tracking import GradientTracking
from decdpo.algorithms.gossip.push_sum import PushSum
from decdpo.algorithms.gossip.quasi_global_momentum import QuasiGlobalMomentum
from decdpo.algorithms.local import Local
from decdpo.algorithms.robust.clipped_gossip import ClippedGossip
from decdpo.algorithms.robust.trimmed_mean import TrimmedMean
from decdpo.algorithms.server.centralized import Centralized
from decdpo.algorithms.server.fedavg import FedAvg
from decdpo.algorithms.server.outer_momentum import OuterMomentum

ALGORITHMS: dict[str, Any] = {
    "dsgd": Dsgd,
    "local": Local,
    "centralized": Centralized,
    "fedavg": FedAvg,
    "outer_momentum": OuterMomentum,
    "gossip_outer_momentum": GossipOuterMomentum,
    "gradient_tracking": GradientTracking,
    "exact_diffusion": ExactDiffusion,
    "quasi_global_momentum": QuasiGlobalMomentum,
    "push_sum": PushSum,
    "choco": Choco,
    "clipped_gossip": ClippedGossip,
    "trimmed_mean": TrimmedMean,
}
"""Every algorithm by its name."""


def needs_of(kind: str) -> Needs:
    """Return what the class of the algorithm ``kind`` declares."""
    needs: Needs = ALGORITHMS[kind].needs
    return needs
