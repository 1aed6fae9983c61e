"""`decdpo bench checkpoint`: every way is measured, and ratios are of the same repeat."""

import json

import pytest

from decdpo.benchmarks.checkpoint import OURS, RAW, bench
from decdpo.cli import main
from decdpo.report.checkpoint_table import checkpoint_table


def test_every_way_is_measured_in_turns(tmp_path):
    page = bench(600_000, 2, 3, tmp_path)
    assert page["bytes"] == 600_000 and list(tmp_path.iterdir()) == []
    assert {RAW, OURS, "torch.save", "training waits", "resume"} <= page["rows"].keys()
    assert page["rows"][RAW]["ratio_to_raw"] == 1.0
    assert 0 < page["share"] <= 0.02 and page["blocked_share"] <= page["share"]
    for row in page["rows"].values():
        assert 0 <= row["min_s"] <= row["median_s"] <= row["max_s"]
    text = checkpoint_table(page)
    assert "600 kB of 2 agents, 3 repeats in turns" in text and "/ raw" in text


@pytest.mark.parametrize("words, message", [
    (["--mb", "0"], "--mb is 0"), (["--agents", "0"], "--agents is 0"),
    (["--rounds", "-1"], "--rounds is -1"), (["--folder", "none"], "there is no such folder"),
])  # fmt: skip
def test_wrong_uses_are_named(words, message, capsys):
    assert main(["bench", "checkpoint", *words]) == 2
    assert message in capsys.readouterr().err


def test_it_prints_json(capsys, tmp_path):
    words = ["--mb", "0.1", "--agents", "1", "--rounds", "1", "--folder", str(tmp_path), "--json"]
    assert main(["bench", "checkpoint", *words]) == 0
    assert json.loads(capsys.readouterr().out)["agents"] == 1
