"""Metrics files, progress lines, the trace and the pages of a run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decdpo import train as train_module
from decdpo.comm.local import LocalWorld
from decdpo.comm.world import Counters
from decdpo.errors import DataError
from decdpo.metrics.recorder import Metrics
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.stats import Stats
from decdpo.progress import Progress
from decdpo.records import keep_until
from decdpo.report.curves import plot_run, read_metrics
from decdpo.report.summary import summarize
from decdpo.run import Agent, Run
from decdpo.timing import PARTS, spread
from decdpo.topology.schedule import make_schedule
from decdpo.trace import MOST_EVENTS, ChromeTrace


def record(round):
    system = {"messages_between_processes": 0, "elapsed_seconds": 0.5}
    return {
        "round": round,
        "loss": 0.7 / round,
        "gradient_norm": 0.1,
        "consensus_distance": 0.01,
        "heldout/accuracy": 0.5,
        "heldout/average/accuracy": 0.6,
        "heldout/average/loss": 0.69,
        "messages": 2 * round,
        "bytes": 2_000_000 * round,
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


def observed(tmp_path, every, counters):
    """Return the records of 4 rounds, of 1, 2, 4 and 8 seconds, with the counters so far."""
    layout = Layout(("x",), ((2,),), 2)
    sampler = SimpleNamespace(rows=lambda step, size: np.arange(1))
    agents = []
    for i in range(2):
        params = FlatParams(layout, torch.zeros(2))
        agents.append(Agent(i, params, None, None, sampler, Stats.zero()))
    still = {0: Stats.zero(), 1: Stats.zero()}
    heldout = SimpleNamespace(
        both=lambda run, mean: (still, still), norm=lambda run, mean: 0.0
    )
    exchange = SimpleNamespace(counters=None, message_bytes=8, sends=lambda agent, row: 1)
    run = Run(LocalWorld(2), exchange, None, None, make_schedule("ring", "auto", 2), agents,
              lambda step: 0.1, 1, 1, False, 4, None, None)  # fmt: skip
    metrics = Metrics(
        tmp_path / "metrics.jsonl", heldout, every=every, rho=None,
        progress=Progress(0, 4, enabled=False), start_round=0, is_root=True,
    )  # fmt: skip
    for t, (seconds, seen) in enumerate(zip((1.0, 2.0, 4.0, 8.0), counters)):
        exchange.counters = seen
        metrics.observe(t, run, seconds)
    metrics.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert all((r["messages"], r["bytes"]) == (2 * r["round"], 16 * r["round"]) for r in records)
    return [r["system"] for r in records]


@pytest.mark.parametrize(
    "every, computed", [(1, [1.0, 2.0, 4.0, 8.0]), (2, [3.0, 12.0]), (3, [7.0, 8.0])]
)
def test_compute_seconds_are_of_all_rounds_since_the_last_record(tmp_path, every, computed):
    records = observed(tmp_path, every, [Counters()] * 4)
    assert [r["compute_seconds"] for r in records] == computed
    assert "longest_wait_agent" not in records[0]


def test_the_neighbour_waited_for_longest_since_the_last_record_is_named(tmp_path):
    seen = [
        Counters(3, 30, 0.75, {5: 0.5, 3: 0.25}),
        Counters(6, 60, 1.75, {5: 0.625, 3: 1.125}),
        Counters(9, 90, 1.75, {5: 0.625, 3: 1.125}),
        Counters(9, 90, 2.0, {5: 0.625, 3: 1.125, 7: 0.25}),
    ]
    first, second, third, fourth = observed(tmp_path, 1, seen)
    assert (first["longest_wait_agent"], first["longest_wait_seconds"]) == (5, 0.5)
    assert (second["longest_wait_agent"], second["longest_wait_seconds"]) == (3, 0.875)
    assert "longest_wait_agent" not in third and third["wait_seconds"] == 0
    assert (fourth["longest_wait_agent"], fourth["longest_wait_seconds"]) == (7, 0.25)


def test_the_longest_waits_are_recorded_with_who_waited(tmp_path):
    later = Counters(3, 30, 0.75, {5: 0.5, 3: 0.5})
    seen = [Counters(3, 30, 0.75, {5: 0.5, 3: 0.25}), later, later, later]
    first, second, third, _ = observed(tmp_path, 1, seen)
    assert first["waits"] == [[0, 5, 0.5], [0, 3, 0.25]] and second["waits"] == [[0, 3, 0.25]]
    assert "waits" not in third


class Slow:
    """An exchange that blocks for a second of a clock that stands still otherwise."""

    def __init__(self, clock):
        self.counters, self.clock = Counters(), clock

    def start(self, agent, round, row, message):
        self.clock.now += 0.25

    def collect(self, round):
        self.clock.now += 1.0
        self.counters.wait_seconds += 1.0
        self.clock.now += 0.5
        return True


def test_a_round_is_timed_by_its_parts_and_waiting_counts_once(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(train_module, "perf_counter", lambda: clock.now)
    world = SimpleNamespace(members=None, commit=lambda t, complete: None)
    run = Run(world, Slow(clock), None, None, None, [], None, 1, 1, False, 1, None, None)
    with train_module.span(run, "post", 0):
        run.exchange.start(0, 0, None, None)
    with train_module.span(run, "mix", 0):
        train_module.finish(run, 0)
    parts = {part: seconds for part, seconds in run.parts.seconds.items() if seconds}
    assert parts == {"post": 0.25, "wait": 1.0, "mix": 0.5}
    since = run.parts.since({"mix": 0.125}, measure=2.0)
    assert (since["mix"], since["measure"]) == (0.375, 2.0)


def test_parts_are_spread_over_processes():
    of_process = [dict.fromkeys(PARTS, seconds) for seconds in (1.0, 2.0, 6.0)]
    assert spread(of_process) == {part: [1.0, 3.0, 6.0] for part in PARTS}


def test_summary_and_curves(tmp_path):
    records = [record(1), record(2)]
    text = summarize(records, {"run": "r", "rounds": "2 of 2"}, "dsgd on ring")
    assert "dsgd on ring" in text and "0.35" in text and "agents sent 4.0 MB in 1.0 s" in text
    pytest.importorskip("matplotlib")
    plot_run(records, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "curves.svg").read_bytes()


def test_the_trace_is_a_chrome_trace_and_is_bounded(tmp_path, monkeypatch):
    trace = ChromeTrace(tmp_path / "trace" / "p.json", 3, "process 3")
    trace("wait", 1.0, 1.5, {"agent": 2, "round": 7, "neighbour": 5})
    monkeypatch.setattr("decdpo.trace.MOST_EVENTS", 1)
    trace("mix", 1.5, 1.6, {"agent": 2, "round": 7})
    trace.close()
    document = json.loads((tmp_path / "trace" / "p.json").read_text())
    (span,) = [e for e in document["traceEvents"] if e["ph"] == "X"]
    assert (span["name"], span["ts"], span["dur"], span["pid"]) == ("wait", 1e6, 5e5, 3)
    assert span["args"] == {"agent": 2, "round": 7, "neighbour": 5}
    assert document["otherData"]["dropped_spans"] == 1 and MOST_EVENTS > 10**5
