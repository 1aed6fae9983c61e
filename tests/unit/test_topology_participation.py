"""Participation: who is drawn, how often, and with what weight."""

import numpy as np
import pytest

from decdpo.errors import TopologyError
from decdpo.topology.participation import Participation


def drawn(schedule: Participation, round: int) -> tuple[int, ...]:
    return schedule.mixing(round).row(0).sources


def test_the_draw_is_a_function_of_seed_and_round_alone() -> None:
    one, other = Participation(20, 5, seed=3), Participation(20, 5, seed=3)
    rounds = [7, 0, 3, 100, 7]
    assert [drawn(one, t) for t in rounds] == [drawn(other, t) for t in rounds]
    assert drawn(one, 7) == drawn(one, 7) != drawn(one, 8)
    assert [drawn(Participation(20, 5, seed=4), t) for t in rounds] != [
        drawn(one, t) for t in rounds
    ]


def test_exactly_the_drawn_agents_are_active() -> None:
    schedule = Participation(9, 4, seed=1)
    for t in range(10):
        mixing = schedule.mixing(t)
        active = [i for i in range(9) if mixing.row(i).active]
        assert tuple(active) == drawn(schedule, t) and len(active) == 4
        assert mixing.row(active[0]).weights == (0.25,) * 4


def test_every_agent_is_drawn_equally_often() -> None:
    schedule, rounds = Participation(10, 3, seed=0), 3000
    counts = np.bincount([i for t in range(rounds) for i in drawn(schedule, t)], minlength=10)
    # Binomial with p = 0.3: a standard deviation of 25; five of them.
    assert np.abs(counts - 900).max() < 125 and counts.std() > 2


def test_a_participant_weighs_its_share_of_the_participants() -> None:
    sizes = [10.0, 20.0, 30.0, 40.0]
    schedule = Participation(4, 2, seed=5, weights=sizes)
    seen = set()
    for t in range(40):
        row = schedule.mixing(t).row(0)
        total = sum(sizes[i] for i in row.sources)
        assert row.weights == pytest.approx([sizes[i] / total for i in row.sources], abs=1e-15)
        seen.add(row.sources)
    assert len(seen) == 6


def test_when_all_take_part_every_round_is_the_same() -> None:
    schedule = Participation(6, 6, seed=1)
    assert schedule.mixing(3) is schedule.mixing(9)
    assert drawn(schedule, 0) == tuple(range(6))
    assert schedule.digest == Participation(6, 6, seed=2).digest
    assert Participation(6, 5, seed=1).digest != Participation(6, 5, seed=2).digest


@pytest.mark.parametrize("participants", [0, -1, 5])
def test_an_impossible_number_is_refused(participants: int) -> None:
    with pytest.raises(TopologyError, match="participants of 4 agents"):
        Participation(4, participants)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0]])
def test_unsound_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(TopologyError, match="weight"):
        Participation(3, 2, weights=weights)
