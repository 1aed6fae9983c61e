"""``tools/bench_simulator.py``: what it prints of small runs, in one process and on ranks."""

import re
import sys

import bench_simulator
import pytest

SMALL = ["bench_simulator.py", "--agents", "8", "--dimension", "256", "--rounds", "2"]
LINE = re.compile(
    r": [\d.]+ s, [\d.]+ s of CPU, 0\.\d+ GB a process; rounds: compute .*, mix .*; "
    r"digest ([0-9a-f]{16})\n"
)


def test_runs_are_timed_on_ranks_and_beside_another_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", SMALL)
    bench_simulator.main()
    (alone,) = LINE.findall(capsys.readouterr().out)
    more = ["--ranks", "2", "--against", str(bench_simulator.ROOT)]
    monkeypatch.setattr(sys, "argv", [*SMALL, *more])
    bench_simulator.main()
    assert LINE.findall(capsys.readouterr().out) == [alone, alone]
