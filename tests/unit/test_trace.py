"""The timeline of a process is a whole document at every moment."""

import json
import os
from pathlib import Path

import pytest

from decdpo import trace as module
from decdpo.trace import ChromeTrace


def spans(path: Path) -> list[int]:
    """Return the rounds of the spans in the document."""
    events = json.loads(path.read_text())["traceEvents"]
    return [event["args"]["round"] for event in events if event["ph"] == "X"]


def test_it_can_be_read_before_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PERIOD", 0.0)
    path = tmp_path / "trace" / "process_0000.json"
    timeline = ChromeTrace(path, 0, "process 0")
    assert spans(path) == []
    for round in range(3):
        timeline("compute", 0.5, 0.75, {"round": round})
        assert spans(path) == list(range(round + 1))
    timeline.close()
    assert spans(path) == [0, 1, 2] and timeline.fault is None


def test_spans_of_the_last_second_are_there_after_settling(tmp_path: Path) -> None:
    timeline = ChromeTrace(tmp_path / "t.json", 0, "process 0")
    timeline("wait", 1.0, 2.0, {"round": 4})
    assert timeline.settle(1.0) and spans(tmp_path / "t.json") == [4]


def test_dropped_spans_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    timeline = ChromeTrace(tmp_path / "t.json", 0, "process 0")
    for round in range(5):
        timeline("mix", 1.0, 2.0, {"round": round})
    timeline.close()
    assert spans(tmp_path / "t.json") == [0, 1]
    other = json.loads((tmp_path / "t.json").read_text())["otherData"]
    assert other == {"dropped_spans": 3}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_ends_the_timeline_and_not_the_run(tmp_path: Path) -> None:
    timeline = ChromeTrace(tmp_path / "t.json", 0, "process 0")
    timeline._file.close()
    timeline._file = open("/dev/full", "w", encoding="utf-8")
    timeline("mix", 1.0, 2.0, {"round": 0})
    timeline.flush()
    timeline("mix", 1.0, 2.0, {"round": 1})
    timeline.close()
    assert timeline.fault is not None and "No space left" in str(timeline.fault)
