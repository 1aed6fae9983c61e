"""Which agents take part, and where each of them is."""

from typing import Any

import numpy as np
import pytest

from decdpo.comm.membership import Membership
from decdpo.errors import EnvironmentFault


@pytest.mark.parametrize(("agents", "ranks"), [(1, 1), (8, 3), (8, 8), (10, 4), (1000, 7)])
def test_agents_lie_in_the_blocks_of_array_split(agents: int, ranks: int) -> None:
    members = Membership.blocks(agents, ranks)
    assert members.ranks == tuple(range(ranks)) and members.epoch == 0
    for rank, block in enumerate(np.array_split(np.arange(agents), ranks)):
        assert members.agents_of(rank) == tuple(block)
        assert {members.rank_of(int(agent)) for agent in block} == {rank}


@pytest.mark.parametrize(("agents", "ranks"), [(0, 1), (3, 4)])
def test_a_rank_without_an_agent_is_refused(agents: int, ranks: int) -> None:
    with pytest.raises(EnvironmentFault, match=f"{agents} agents"):
        Membership.blocks(agents, ranks)


def test_agents_may_be_anywhere_and_some_may_be_gone() -> None:
    members = Membership(3, (0, 2, 5, 6), {0: 2, 2: 0, 5: 2, 6: 0})
    assert members.agents_of(0) == (2, 6) and members.agents_of(2) == (0, 5)
    assert members.agents_of(1) == () and members.ranks == (0, 2)
    assert members.by_rank == (2, 6, 0, 5)


@pytest.mark.parametrize(
    ("agents", "home"), [((0, 1), {0: 0}), ((1, 0), {0: 0, 1: 0}), ((0,), {0: 0, 1: 0})]
)
def test_members_and_homes_must_agree(agents: Any, home: Any) -> None:
    with pytest.raises(ValueError, match="members are"):
        Membership(0, agents, home)
