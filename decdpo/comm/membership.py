"""Which agents take part, and which process is home to each of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from decdpo.errors import EnvironmentFault


@dataclass(frozen=True)
class Membership:
    """The agents that take part, and the rank that hosts each; replaced as a whole, never changed.

    epoch : counts the memberships of a job, from 0. agents : their ids, ascending. home : the rank
    of each of them; a rank's agents may be any, and need not follow one another.

    Raises ``ValueError`` if ``agents`` do not ascend or ``home`` is of other agents.
    """

    epoch: int
    agents: tuple[int, ...]
    home: Mapping[int, int]

    def __post_init__(self) -> None:
        if list(self.agents) != sorted(set(self.home)):
            raise ValueError(f"home is of agents {sorted(self.home)}, members are {self.agents}")

    @classmethod
    def blocks(cls, num_agents: int, num_ranks: int) -> "Membership":
        """Return agents 0 ... n-1 in one contiguous block per rank, as ``numpy.array_split`` cuts.

        Raises ``EnvironmentFault`` if there is no agent, or a rank would host none.
        """
        if num_agents < 1:
            raise EnvironmentFault(f"there are {num_agents} agents", "give at least one")
        if num_ranks > num_agents:
            raise EnvironmentFault(
                f"{num_ranks} processes for {num_agents} agents: some would host none",
                f"start at most {num_agents} processes, or raise the number of agents",
            )
        return cls.spread(range(num_agents), num_ranks)

    @classmethod
    def spread(cls, agents: Sequence[int], num_ranks: int) -> "Membership":
        """Return ``agents``, ascending, in one block per rank; see ``blocks``."""
        if num_ranks > len(agents):
            raise EnvironmentFault(
                f"{num_ranks} processes for {len(agents)} agents that are left: some would host "
                "none",
                f"start at most {len(agents)} processes",
            )
        small, extra = divmod(len(agents), num_ranks)
        sizes = [small + (rank < extra) for rank in range(num_ranks)]
        ranks = (rank for rank, size in enumerate(sizes) for _ in range(size))
        return cls.of(dict(zip(agents, ranks)))

    @classmethod
    def of(cls, home: Mapping[int, int]) -> "Membership":
        """Return the first membership of a job, of the agents in ``home``."""
        return cls(0, tuple(sorted(home)), dict(home))

    def without(self, ranks: Iterable[int]) -> "Membership":
        """Return the next membership: that of the agents which are not on these ``ranks``."""
        gone = frozenset(ranks)
        home = {agent: rank for agent, rank in self.home.items() if rank not in gone}
        return Membership(self.epoch + 1, tuple(sorted(home)), home)

    def adding(self, home: Mapping[int, int]) -> "Membership":
        """Return the next membership: with the agents of ``home`` as well."""
        merged = {**self.home, **home}
        return Membership(self.epoch + 1, tuple(sorted(merged)), merged)

    def rank_of(self, agent: int) -> int:
        """Return the rank that hosts ``agent``."""
        return self.home[agent]

    def agents_of(self, rank: int) -> tuple[int, ...]:
        """Return the agents that ``rank`` hosts, ascending; none if it hosts none."""
        return self._agents_of.get(rank, ())

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that host agents, ascending."""
        return tuple(sorted(self._agents_of))

    @cached_property
    def by_rank(self) -> tuple[int, ...]:
        """The agents rank after rank, each rank's ascending."""
        return tuple(agent for rank in self.ranks for agent in self._agents_of[rank])

    @cached_property
    def _agents_of(self) -> dict[int, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for agent in self.agents:
            found.setdefault(self.home[agent], []).append(agent)
        return {rank: tuple(agents) for rank, agents in found.items()}
