"""Runs whose letters are late, compressed or hold a statistic: ranks, stops, replaying."""

import json

import pytest

LATE = ["--set", "staleness.kind=seeded", "--set", "staleness.max_age=3"]
RUNNING = ["--set", "loss.kind=beta_dpo"]
CHOCO = ["--set", "algorithm.kind=choco", "--set", "algorithm.gamma=0.3"]


def total(shell, run, key):
    lines = (shell.folder / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["system"][key] for line in lines]


@pytest.mark.parametrize(
    "options", [LATE, [*CHOCO, "--set", "algorithm.codec=int4"], [*RUNNING, *LATE]]
)
def test_ranks_and_a_stop_leave_the_bits_alone(shell, config, options):
    shell("train", config, "--out", "whole", *options)
    shell("train", config, "--out", "ranks", *options, ranks=3)
    assert shell.digests("whole") == shell.digests("ranks")
    assert shell.metrics("whole") == shell.metrics("ranks")
    shell("train", config, "--out", "part", *options, "--set", "run.rounds=7")
    shell("resume", "part", "--set", "run.rounds=12", ranks=2)
    assert shell.digests("part") == shell.digests("whole")
    assert shell.metrics("part") == shell.metrics("whole")


def test_late_letters_change_the_run_and_no_delay_does_not(shell, config):
    shell("train", config, "--out", "plain")
    shell("train", config, "--out", "late", *LATE)
    shell("train", config, "--out", "never", *LATE, "--set", "staleness.max_age=0")
    assert shell.digests("plain") == shell.digests("never") != shell.digests("late")
    ages = total(shell, "late", "ages")
    assert sum(ages[0]) == 0 and ages[1] == [16, 0, 0, 0]
    assert all(sum(a) == 16 for a in ages[1:])
    assert sum(a[3] for a in ages) > 0
    accuracy = json.loads(shell("evaluate", "late", "--json"))["average"]["accuracy"]
    assert accuracy > 0.5


def test_a_run_by_arrival_is_replayed_in_one_process(shell, config):
    arrival = ["--set", "staleness.kind=arrival", "--set", "log.every=6"]
    shell("train", config, "--out", "live", *arrival, "--set", "run.rounds=6", ranks=4)
    shell("resume", "live", "--set", "run.rounds=12", ranks=3)
    replay = ["--set", "staleness.kind=replay", "--set", "staleness.run=live"]
    shell("train", config, "--out", "again", *replay)
    again, live = ({i: d["x"] for i, d in shell.digests(r).items()} for r in ("again", "live"))
    assert again == live
    assert sum(map(sum, total(shell, "live", "ages"))) == 12 * 16
    shell("train", config, "--out", "longer", *replay, "--set", "run.rounds=13", status=2)
    assert "no ages of 2 letters in round 12" in shell.said
    shell("train", config, "--out", "none", *replay, "--set", "staleness.run=again", status=2)
    assert "agent_000000.jsonl" in shell.said


def test_compressed_messages_are_counted_as_they_travel(shell, config):
    shell("train", config, "--out", "small", *CHOCO, "--set", "algorithm.ratio=0.05", ranks=4)
    code = 8 + (int(0.05 * 4 * 4096) - 8) // 6 * 6
    assert total(shell, "small", "messages_between_processes") == [0, *[8] * 12]
    assert total(shell, "small", "bytes_between_processes") == [0, *[8 * (64 + code)] * 12]
    assert total(shell, "small", "messages_between_nodes") == [0] * 13
    # Of the 16 messages of a round every other one stays within a process.
    records = shell.metrics("small")
    assert [r["messages"] for r in records] == [16 * r["round"] for r in records]
    assert [r["bytes"] for r in records] == [16 * r["round"] * code for r in records]
