"""Which agents take part in a round of federated averaging, known to every process untold."""

from collections.abc import Sequence

import numpy as np

from decdpo.errors import TopologyError
from decdpo.rng import Stream, generator
from decdpo.topology.schedule import Averaging
from decdpo.topology.varying import text_digest


class Participation:
    """S of n agents, drawn uniformly without replacement in every round, are averaged.

    The round's own random numbers choose them: nothing needs saving or telling.

    num_agents : n. participants : S. seed : of the draw. weights : (n,) positive, for instance the
    agents' numbers of pairs; a participant weighs its share of the participants' sum. None for
    equal weights.

    Raises ``TopologyError`` unless 1 <= S <= n and the weights are n positive numbers.
    """

    def __init__(
        self,
        num_agents: int,
        participants: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not 1 <= participants <= num_agents:
            raise TopologyError(
                f"{participants} participants of {num_agents} agents",
                f"choose between 1 and {num_agents}",
            )
        self.num_agents = num_agents
        self.participants = participants
        self.seed = seed
        self._weights = None if weights is None else np.array(weights, dtype=np.float64)
        if self._weights is not None:
            _check_weights(self._weights, num_agents)
        given = None if self._weights is None else self._weights.tolist()
        drawn = f"seed {seed}" if participants < num_agents else "all of them"
        self.digest = text_digest(
            f"participation of {participants} of {num_agents} agents, {drawn}, weights {given!r}"
        )
        self._recent: dict[int, Averaging] = {}

    def among(self, agents: Sequence[int]) -> "Participation":
        """Return the same for ``agents`` alone, which are called 0 ... m-1 there.

        As many take part as before, or all of them if fewer are left.
        """
        weights = None if self._weights is None else self._weights[list(agents)].tolist()
        return Participation(
            len(agents), min(self.participants, len(agents)), self.seed, weights
        )

    @property
    def rho(self) -> None:
        """None: no graph decides how fast agents agree."""

    def mixing(self, round: int) -> Averaging:
        """Return the average over the participants of ``round``."""
        if self.participants == self.num_agents:
            round = 0
        averaging = self._recent.get(round)
        if averaging is None:
            while len(self._recent) > 3:
                del self._recent[min(self._recent)]
            averaging = self._recent[round] = self._draw(round)
        return averaging

    def _draw(self, round: int) -> Averaging:
        rng = generator(self.seed, Stream.PARTICIPATION, round=round)
        ids = np.sort(rng.choice(self.num_agents, self.participants, replace=False))
        if self._weights is None:
            return Averaging(ids.tolist())
        chosen = self._weights[ids]
        return Averaging(ids.tolist(), (chosen / chosen.sum()).tolist())


def _check_weights(weights: np.ndarray, num_agents: int) -> None:
    """Raise ``TopologyError`` unless every agent has a positive weight."""
    if weights.shape != (num_agents,):
        raise TopologyError(
            f"{weights.size} weights for {num_agents} agents", "give one weight per agent"
        )
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
    if bad.size:
        raise TopologyError(
            f"agent {bad[0]} has weight {weights[bad[0]]:g}", "give every agent a positive weight"
        )
