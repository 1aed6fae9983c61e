"""Runs whose messages are late, by a seed or by arrival, and their replay in one process."""

import json

LATE = ["--set", "staleness.kind=seeded", "--set", "staleness.max_age=3"]


def total(shell, run, key):
    lines = (shell.folder / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["system"][key] for line in lines]


def test_late_messages_change_the_run_and_no_delay_does_not(shell, config):
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
    shell("train", config, "--out", "live", *arrival, "--set", "run.rounds=6", ranks=3)
    shell("resume", "live", "--set", "run.rounds=12", ranks=2)
    replay = ["--set", "staleness.kind=replay", "--set", "staleness.run=live"]
    shell("train", config, "--out", "again", *replay)
    again, live = ({i: d["x"] for i, d in shell.digests(r).items()} for r in ("again", "live"))
    assert again == live
    assert sum(map(sum, total(shell, "live", "ages"))) == 12 * 16
    shell("train", config, "--out", "longer", *replay, "--set", "run.rounds=13", status=2)
    assert "no ages of 2 messages in round 12" in shell.said
    shell("train", config, "--out", "none", *replay, "--set", "staleness.run=again", status=2)
    assert "agent_000000.jsonl" in shell.said
