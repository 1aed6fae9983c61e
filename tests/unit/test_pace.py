"""Lines that say how far a long preparation is."""

import time

import pytest
from limits import await_that

from decdpo.policies.lm.pace import Pace, duration


def test_the_time_left_is_that_of_the_present_work():
    now = [0.0]
    pace = Pace(None, 40, clock=lambda: now[0])
    assert pace.line() == ""
    pace.begin("making tokens")
    now[0] = 1.0
    assert pace.line() == "making tokens, since 1 s"
    pace.step(20)
    pace.begin("reference")
    now[0] = 21.0
    pace.step(10)
    assert pace.line() == "reference: 10 of 40 pairs, about 60 s left"
    pace.begin("making tokens")
    now[0] = 22.0
    pace.step(20)
    assert pace.line() == "making tokens: 40 of 40 pairs, about 0 s left"


def test_a_step_of_another_work_does_not_count():
    pace = Pace(None, 4)
    pace.begin("fine")
    pace.step(4, "coarse")
    assert pace.line() == "fine, since 0 s"


def test_it_speaks_while_a_single_step_takes_long_and_then_stops():
    said = []
    with Pace(said.append, 8, interval=0.02) as pace:
        pace.begin("slow")
        await_that(lambda: len(said) >= 2, "two lines")
    assert said[0] == "slow, since 0 s"
    count = len(said)
    time.sleep(0.1)
    assert len(said) == count


def test_a_fault_inside_ends_it():
    said = []
    with pytest.raises(ValueError):
        with Pace(said.append, 8, interval=0.01) as pace:
            pace.begin("work")
            raise ValueError
    count = len(said)
    time.sleep(0.05)
    assert len(said) == count


@pytest.mark.parametrize("seconds, words", [(40, "40 s"), (244, "4 min"), (12600, "3.5 h")])
def test_durations_are_words(seconds, words):
    assert duration(seconds) == words
