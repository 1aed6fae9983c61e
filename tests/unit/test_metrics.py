"""Metrics files, progress lines, the trace and the pages of a run."""

import io
import json

import pytest

from decdpo.errors import DataError
from decdpo.metrics import Progress, keep_until
from decdpo.report.curves import plot_run, read_metrics
from decdpo.report.summary import summarize
from decdpo.trace import MOST_EVENTS, ChromeTrace


def record(round):
    system = {"messages": 2, "bytes": 2_000_000, "elapsed_seconds": 0.5}
    return {
        "round": round,
        "loss": 0.7 / round,
        "gradient_norm": 0.1,
        "consensus_distance": 0.01,
        "heldout/accuracy": 0.5,
        "heldout/average/accuracy": 0.6,
        "heldout/average/loss": 0.69,
        "system": system,
    }


def write(path, rounds, tail=""):
    path.write_text("".join(json.dumps(record(r)) + "\n" for r in rounds) + tail)


def test_records_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4])
    keep_until(path, 2)
    assert [r["round"] for r in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("tail", ['{"round": 3, "lo', '{"round": 3}', "\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2], tail)
    keep_until(path, 9)
    assert [r["round"] for r in read_metrics(path)] == [1, 2]


def test_a_foreign_line_is_an_error_and_nothing_is_lost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1], "not a record\n" + json.dumps(record(2)) + "\n")
    before = path.read_text()
    with pytest.raises(DataError, match="line 2"):
        keep_until(path, 9)
    assert path.read_text() == before


def test_a_missing_file_is_fine(tmp_path):
    keep_until(tmp_path / "metrics.jsonl", 3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_batch_log_gets_plain_lines_and_the_last_round():
    stream = io.StringIO()
    progress = Progress(0, 3, enabled=True, stream=stream)
    for done in (1, 2, 3):
        progress.show(done, {"loss": 0.5})
    progress.close()
    assert stream.getvalue() == "round 3/3  loss 0.5  0:00 left\n"


def test_a_terminal_gets_a_live_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(0, 4, enabled=True, stream=stream)
    progress.show(4, {})
    progress.close()
    assert "[########################] round 4/4" in stream.getvalue()
    assert stream.getvalue().startswith("\r") and stream.getvalue().endswith("\n")


def test_only_one_process_speaks():
    stream = io.StringIO()
    Progress(0, 1, enabled=False, stream=stream).show(1, {})
    assert stream.getvalue() == ""


def test_summary_and_curves(tmp_path):
    records = [record(1), record(2)]
    text = summarize(records, {"run": "r", "rounds": "2 of 2"}, "dsgd on ring")
    assert "dsgd on ring" in text and "0.35" in text and "sent 4.0 MB in 1.0 s" in text
    pytest.importorskip("matplotlib")
    plot_run(records, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_trace_is_a_chrome_trace_and_is_bounded(tmp_path, monkeypatch):
    trace = ChromeTrace(3, "process 3")
    trace("wait", 1.0, 1.5, {"agent": 2, "round": 7, "neighbour": 5})
    monkeypatch.setattr("decdpo.trace.MOST_EVENTS", 1)
    trace("mix", 1.5, 1.6, {"agent": 2, "round": 7})
    trace.write(tmp_path / "trace" / "p.json")
    document = json.loads((tmp_path / "trace" / "p.json").read_text())
    (span,) = [e for e in document["traceEvents"] if e["ph"] == "X"]
    assert (span["name"], span["ts"], span["dur"], span["pid"]) == ("wait", 1e6, 5e5, 3)
    assert span["args"] == {"agent": 2, "round": 7, "neighbour": 5}
    assert document["otherData"]["dropped_spans"] == 1 and MOST_EVENTS > 10**5
