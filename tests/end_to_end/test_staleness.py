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
