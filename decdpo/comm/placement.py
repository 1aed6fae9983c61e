"""Which rank hosts which agents: contiguous blocks in ascending order."""

from dataclasses import dataclass

from decdpo.errors import EnvironmentFault


@dataclass(frozen=True)
class Placement:
    """Agents 0..n-1 cut into one contiguous block per rank, as ``numpy.array_split`` cuts.

    num_agents : n. num_ranks : r <= n; the first n mod r ranks host one agent more.

    Raises ``EnvironmentFault`` if there is no agent, or a rank would host none.
    """

    num_agents: int
    num_ranks: int

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise EnvironmentFault(f"there are {self.num_agents} agents", "give at least one")
        if self.num_ranks > self.num_agents:
            raise EnvironmentFault(
                f"{self.num_ranks} processes for {self.num_agents} agents: some would host none",
                f"start at most {self.num_agents} processes, or raise the number of agents",
            )

    def agents_of(self, rank: int) -> tuple[int, ...]:
        """Return the agents that ``rank`` hosts, ascending."""
        small, extra = divmod(self.num_agents, self.num_ranks)
        first = rank * small + min(rank, extra)
        return tuple(range(first, first + small + (rank < extra)))

    def rank_of(self, agent: int) -> int:
        """Return the rank that hosts ``agent``."""
        small, extra = divmod(self.num_agents, self.num_ranks)
        cut = extra * (small + 1)
        return agent // (small + 1) if agent < cut else extra + (agent - cut) // small
