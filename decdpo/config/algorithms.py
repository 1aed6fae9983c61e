"""The sections ``[algorithm]``: the options of each algorithm, and its line among the kinds."""

from dataclasses import dataclass, fields
from typing import ClassVar

from decdpo.config.options import option
from decdpo.errors import ConfigError

CODECS = ("topk", "randomk", "int8", "int4", "bf16", "identity")
"""Ways to compress a message."""

FRAGMENTS = "F, parts of the vector: one travels in a round, in turn, so 1/F of the bytes"
"""What the key of that name means."""

DISHONEST = "b, neighbours of an agent that may send anything; it needs more than 2 b in all"
"""What the key of that name means."""

SPARSE = ("topk", "randomk")
"""Those that keep a chosen part of the values."""


@dataclass(frozen=True)
class AlgorithmSection:
    """What the section of every algorithm says besides its own keys.

    neighbours : whether a section ``[topology]`` goes with it; else there is nobody to talk to, or
        a server. The properties hold for algorithms that leave no choice; a key takes their place.
    """

    neighbours: ClassVar[bool] = True
    kind: str

    @property
    def local_steps(self) -> int:
        """E, local steps of one round."""
        return 1

    @property
    def overlap(self) -> bool:
        """Whether messages travel while the agents compute gradients."""
        return False

    @property
    def fragments(self) -> int:
        """F, parts of the vector of which one travels in a round."""
        return 1

    @property
    def dishonest(self) -> int:
        """b, how many neighbours of an agent it must not trust."""
        return 0

    @property
    def has_outer_momentum(self) -> bool:
        """Whether the agents hold a common momentum of their averaged changes."""
        return False

    def check(self) -> None:
        """Raise ``ConfigError`` for an option that the others leave unused."""


@dataclass(frozen=True)
class Dsgd(AlgorithmSection):
    """DecDPO: decentralized SGD."""

    kind: str = option("dsgd", "which algorithm")
    local_steps: int = option(1, "E, local steps between two exchanges", low=1)
    overlap: bool = option(True, "exchange while adapting (else adapt, then combine)")
    fragments: int = option(1, FRAGMENTS, low=1)


@dataclass(frozen=True)
class Local(AlgorithmSection):
    """Every agent alone, no exchange."""

    neighbours: ClassVar[bool] = False

    kind: str = option("local", "which algorithm")
    local_steps: int = option(1, "E, local steps of one round", low=1)


@dataclass(frozen=True)
class Centralized(AlgorithmSection):
    """One step per round along the gradient averaged over all agents."""

    neighbours: ClassVar[bool] = False

    kind: str = option("centralized", "which algorithm")


@dataclass(frozen=True)
class FedAvg(AlgorithmSection):
    """FedDPO: local steps of sampled participants, averaged by a server."""

    neighbours: ClassVar[bool] = False

    kind: str = option("fedavg", "which algorithm")
    local_steps: int = option(1, "E, local steps of a participant in one round", low=1)
    participants: int = option(0, "S, agents drawn for a round; 0 is all of them", low=0)
    weighting: str = option(
        "equal", "a participant's weight: equal, or its number of pairs", choices=("equal", "pairs")
    )
    server_momentum: float = option(
        0.0, "heavy-ball momentum of the server; 0 is none", low=0.0, below=1.0
    )

    @property
    def has_outer_momentum(self) -> bool:
        """Whether the server has momentum."""
        return self.server_momentum > 0


@dataclass(frozen=True)
class OuterMomentum(AlgorithmSection):
    """SlowMo, DiLoCo: local steps, then an outer momentum step along the averaged change."""

    neighbours: ClassVar[bool] = False

    kind: str = option("outer_momentum", "which algorithm")
    local_steps: int = option(10, "E, local steps of one round", low=1)
    outer_lr: float = option(0.7, "step size of the outer step", above=0.0)
    outer_momentum: float = option(0.9, "momentum of the outer step", low=0.0, below=1.0)
    nesterov: bool = option(True, "Nesterov's outer step (DiLoCo); else heavy ball (SlowMo)")
    fragments: int = option(1, FRAGMENTS, low=1)

    @property
    def has_outer_momentum(self) -> bool:
        """Always so."""
        return True

    def check(self) -> None:
        """Refuse a look ahead along no momentum."""
        if self.nesterov and not self.outer_momentum:
            raise ConfigError(
                "algorithm.nesterov = true is ignored when algorithm.outer_momentum = 0",
                "set algorithm.outer_momentum, or algorithm.nesterov = false",
            )


@dataclass(frozen=True)
class GossipOuterMomentum(OuterMomentum):
    """GASLoC, NoLoCo: local steps, then an outer momentum step along what neighbours average."""

    neighbours: ClassVar[bool] = True

    kind: str = option("gossip_outer_momentum", "which algorithm")
    outer_lr: float = option(0.7, "step size of the outer step", above=0.0, high=1.0)

    @property
    def has_outer_momentum(self) -> bool:
        """Never so: every agent's momentum is its own."""
        return False


@dataclass(frozen=True)
class GradientTracking(AlgorithmSection):
    """Gradient tracking: steps along the tracked average gradient; twice the bytes."""

    kind: str = option("gradient_tracking", "which algorithm")
    overlap: bool = option(True, "exchange while adapting (else adapt, then combine)")
    fragments: int = option(1, FRAGMENTS, low=1)


@dataclass(frozen=True)
class ExactDiffusion(AlgorithmSection):
    """Exact diffusion: D2's correction with (I + W) / 2, so SGD without its bias; symmetric W."""

    kind: str = option("exact_diffusion", "which algorithm")
    fragments: int = option(1, FRAGMENTS, low=1)


@dataclass(frozen=True)
class QuasiGlobalMomentum(AlgorithmSection):
    """Quasi-global momentum: momentum from the change of the model across a round."""

    kind: str = option("quasi_global_momentum", "which algorithm")
    local_steps: int = option(1, "E, local steps between two exchanges", low=1)
    beta: float = option(0.9, "weight of the momentum in a step", low=0.0, below=1.0)
    mu: float = option(0.9, "share of the momentum that a round keeps", low=0.0, below=1.0)
    overlap: bool = option(True, "exchange while adapting (else adapt, then combine)")
    fragments: int = option(1, FRAGMENTS, low=1)


@dataclass(frozen=True)
class PushSum(AlgorithmSection):
    """Stochastic gradient push: column-stochastic weights, for directed graphs."""

    kind: str = option("push_sum", "which algorithm")
    local_steps: int = option(1, "E, local steps between two exchanges", low=1)
    overlap: bool = option(True, "exchange while adapting (else adapt, then combine)")
    fragments: int = option(1, FRAGMENTS, low=1)


@dataclass(frozen=True)
class Choco(AlgorithmSection):
    """CHOCO-SGD: gossip of compressed differences, with error feedback; static weights."""

    kind: str = option("choco", "which algorithm")
    codec: str = option("topk", "how a difference is compressed", choices=CODECS)
    ratio: float = option(
        1 / 16, "bytes that travel over the plain bytes, of topk and randomk", above=0.0, high=1.0
    )
    gamma: float = option(
        0.0, "consensus step; 0 is the contraction constant of the codec", low=0.0, high=1.0
    )
    local_steps: int = option(1, "E, local steps between two exchanges", low=1)
    overlap: bool = option(True, "exchange while adapting (else adapt, then combine)")
    fragments: int = option(1, FRAGMENTS, low=1)

    def check(self) -> None:
        """Refuse a ratio of codecs that keep every value."""
        usual = next(f.default for f in fields(self) if f.name == "ratio")
        if self.codec not in SPARSE and self.ratio != usual:
            raise ConfigError(
                f"algorithm.ratio is not used by algorithm.codec = {self.codec!r}, which keeps "
                "every value",
                "remove algorithm.ratio, or choose algorithm.codec = "
                + " or ".join(map(repr, SPARSE)),
            )


@dataclass(frozen=True)
class ClippedGossip(AlgorithmSection):
    """Gossip among untrusted neighbours: each pulls a bounded way."""

    kind: str = option("clipped_gossip", "which algorithm")
    local_steps: int = option(1, "E, local steps between two exchanges", low=1)
    dishonest: int = option(1, DISHONEST, low=1)
    fragments: int = option(1, FRAGMENTS, low=1)


@dataclass(frozen=True)
class TrimmedMean(AlgorithmSection):
    """Gossip among untrusted neighbours: the extreme values of each coordinate are left out."""

    kind: str = option("trimmed_mean", "which algorithm")
    local_steps: int = option(1, "E, local steps between two exchanges", low=1)
    dishonest: int = option(1, DISHONEST, low=1)
    fragments: int = option(1, FRAGMENTS, low=1)


ALGORITHM_SECTIONS: dict[str, type[AlgorithmSection]] = {
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
"""The section of every algorithm by its ``kind``, the default first."""
