"""Processes are killed or stopped while a run trains, and the others go on."""

import json
import signal

import pytest
from chaos import Victims
from limits import HANG

from decdpo.comm.mpi.mpirun import capture

SURVIVE = ["--set", "faults.on_loss=survive", "--set", "log.every=1", "--set", "run.rounds=160"]


def test_the_others_go_on_when_processes_are_killed_or_stopped(shell, config):
    words = ["train", config.name, "--out", "run", *SURVIVE, "--set", "comm.timeout=4"]
    victims = Victims(4, shell.folder, "run", words)
    victims.await_round(20)
    # The first speaks, writes the records and commits checkpoints.
    assert victims.hit(0)
    victims.await_round(50)
    assert victims.hit(2, signal.SIGSTOP)
    assert victims.wait() == 0, victims.said
    assert "process 2 (agents 4 to 5)" in victims.said
    assert "agents 0, 1; 6 go on" in victims.said and "done; see" in victims.said
    events = json.loads((victims.out / "run.json").read_text())["events"]
    assert [event["lost"] for event in events] == [[0, 1], [4, 5]]
    assert all(event["recovery_ms"] > 0 and 0 < event["gap"] < 1 for event in events)
    lines = (victims.out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["round"] for record in records] == list(range(161))
    told = [event for record in records for event in record["system"].get("events", ())]
    assert told == events
    assert len(shell.digests("run")) == 4
    found = json.loads(shell("replay", "run", "--json"))
    assert found["exact"] and found["round"] == 160 and len(found["history"]) == 2
    shell("resume", "run", "--set", "run.rounds=165")
    assert sorted(shell.digests("run")) == ["2", "3", "6", "7"]
    assert json.loads(shell("replay", "run", "--json"))["exact"]
    assert len(json.loads(shell("evaluate", "run", "--json"))["agents"]) == 4


def test_a_start_that_could_not_survive_is_refused(shell, config):
    program = shell.command(["train", config.name, "--out", "run", *SURVIVE], None)
    code, _, said = capture(2, program, limit=HANG, cwd=shell.folder)
    assert code == 2 and said.count("mpirun --with-ft ulfm") == 1 and "status 75" in said


@pytest.mark.parametrize(
    ("pairs", "parts"),
    [
        (["algorithm.kind=centralized"], ["algorithm.kind = 'centralized'", "dsgd"]),
        (["comm.transport=window"], ["comm.transport = 'window'"]),
        (["staleness.kind=seeded"], ["staleness.kind = 'seeded'", "remove [staleness]"]),
        (["faults.on_loss=dance"], ["abort, survive, adopt"]),
    ],
)
def test_what_cannot_survive_is_refused(shell, config, pairs, parts):
    sets = [word for pair in pairs for word in ("--set", pair)]
    shell("train", config.name, "--out", "run", *SURVIVE, *sets, status=2)
    assert all(part in shell.said for part in parts)
