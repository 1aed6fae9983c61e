"""``tools/bench_trl.py``: what it says of a contestant that has ended."""

import sys

import pytest
from bench_trl import Contestant


def test_a_contestant_that_ended_is_quoted() -> None:
    said = "import sys; sys.exit('no such package: liger_kernel')"
    contestant = Contestant([sys.executable, "-c", said], threads=1)
    contestant.process.wait()
    # What is written goes nowhere now; the first of it fails at once or at the end.
    with pytest.raises(SystemExit, match="ended:\nno such package: liger_kernel"):
        contestant.step()
    contestant.end()


def test_a_contestant_answers_in_turn() -> None:
    says = "for line in open(0): print('{\"loss\": 1.5}', flush=True)"
    contestant = Contestant([sys.executable, "-c", says], threads=1)
    assert [contestant.step(), contestant.step()] == [{"loss": 1.5}] * 2
    contestant.end()
