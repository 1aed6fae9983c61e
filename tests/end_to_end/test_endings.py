"""However a run ends, one line says what is saved and how to go on."""

import json
import os
import signal
import time

import pytest
from limits import HANG, await_that

from decdpo import cli
from decdpo.session.record import saved

GO_ON = "is saved; continue with: decdpo resume run"
DIVERGES = ["--set", "optim.lr=1e38", "--set", "loss.beta=1e30"]


def test_done(shell, config):
    shell("train", config, "--out", "run")
    assert "decdpo: done; see run/summary.txt; round 12 is saved, for more: " in shell.said
    command = shell.said.strip().rpartition("for more: decdpo ")[2].split()
    shell(*command)
    assert shell.metrics("run")[-1]["round"] == 24


def test_a_run_that_fails(shell, config):
    shell("train", config, "--out", "run", *DIVERGES, "--trace", status=1)
    assert shell.said.rstrip().endswith(f"decdpo: round 0 {GO_ON}"), shell.said
    events = json.loads((shell.folder / "run/trace/process_0000.json").read_text())["traceEvents"]
    assert {"compute"} <= {event["name"] for event in events if event["ph"] == "X"}


def test_a_run_that_fails_on_one_of_several_ranks(shell, config):
    shell("train", config, "--out", "run", *DIVERGES, "--trace", ranks=2, status=1)
    assert "NaN or infinite parameters" in shell.said and "Traceback" not in shell.said
    assert shell.said.count(f"decdpo: round 0 {GO_ON}") == 1
    assert shell.said.count("is saved") == 1, shell.said
    traces = sorted((shell.folder / "run" / "trace").iterdir())
    assert len(traces) == 2 and all("traceEvents" in json.loads(t.read_text()) for t in traces)


def test_before_anything_is_saved(tmp_path):
    assert saved(tmp_path) == f"nothing is saved in {tmp_path} yet; give the same command again"


def test_a_checkpoint_in_flight_is_kept_when_all_processes_fail(shell, config, monkeypatch):
    """All raise together after round 4, whose checkpoint is still being written."""
    write, poll = "decdpo.checkpoint.writer.write_part", "decdpo.session.training.Checkpoints.poll"

    def slowly(path, records, header, write_part=_of("decdpo.checkpoint.writer", "write_part")):
        time.sleep(0.0 if header["round"] == 0 else 0.7)
        return write_part(path, records, header)

    def fail(store):
        if store.store._writer._thread is not None:
            raise OSError(5, "Input/output error", "metrics.jsonl")

    monkeypatch.setattr(write, slowly)
    monkeypatch.setattr(poll, fail)
    shell("train", config, "--out", "run", status=2)
    assert "Input/output error" in shell.said and f"decdpo: round 4 {GO_ON}" in shell.said
    shell("checkpoint", "verify", "run")


def _of(module, name):
    return getattr(__import__(module, fromlist=[name]), name)


def at_the_start(monkeypatch, number):
    """Send a signal while the command line is being read, before anything heavy is imported."""
    parse = cli.parse

    def signalled(argv):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        return parse(argv)

    monkeypatch.setattr(cli, "parse", signalled)


def test_a_signal_before_the_first_round_ends_it_with_a_line(shell, config, monkeypatch):
    at_the_start(monkeypatch, signal.SIGTERM)
    shell("train", config, "--out", "run", status=143)
    assert shell.said == (
        "decdpo: ended by SIGTERM before the first round; nothing is lost: give the same command "
        "again\n"
    )


def test_usr1_before_the_first_round_stops_after_it(shell, config, monkeypatch):
    at_the_start(monkeypatch, signal.SIGUSR1)
    shell("train", config, "--out", "run", status=85)
    assert f"decdpo: stopped early (SIGUSR1): round 1 {GO_ON}" in shell.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_mpirun_is_asked_to_end(shell, config, number):
    """Open MPI kills its processes then, saved or not: its status is 1, and a line says it."""
    options = ["--set", "run.rounds=1000000", "--set", "checkpoint.every=0"]
    process = shell.start("train", config, "--out", "run", *options, ranks=2)
    path = shell.folder / "run" / "metrics.jsonl"
    await_that(lambda: path.exists() and path.stat().st_size, "a record")
    process.send_signal(number)
    said, _ = process.communicate(timeout=HANG)
    assert process.returncode == 1 and said.count("decdpo resume run") == 1, said
    shell("checkpoint", "verify", "run")
