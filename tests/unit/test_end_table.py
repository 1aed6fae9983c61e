"""Where the time of a run went, said at its end."""

import json
import shutil

import pytest

from decdpo.cli import main
from decdpo.data.synthetic import Choices, synthesize
from decdpo.metrics.account import _together
from decdpo.report.end_table import advise, end_table
from decdpo.timing import PARTS


def place(compute, wait=0.0, measure=0.0, seconds=20.0, **further):
    """Return what one process says of itself."""
    parts = dict.fromkeys(PARTS, 0.0) | {"compute": compute, "wait": wait, "measure": measure}
    found = {"seconds": seconds, "parts": parts, "pairs": 100, "tokens": 0, "flops": 0.0,
             "could": 0.0, "agent_steps": 30, "hosted": 30, "bytes": 1_000_000}  # fmt: skip
    return found | further


def test_four_ranks_lie_beside_each_other_with_least_mean_most_and_share():
    places = [place(2.0), place(4.0), place(4.0), place(10.0, wait=1.0)]
    end = _together(places, 10, 2, 12, 120)
    lines = end_table(end)
    assert lines[0] == "10 rounds, 2 of them for the second time on 4 ranks in 20.0 s, 2 s a round"
    assert lines[1].split() == ["seconds", "least", "mean", "most", "share"]
    assert lines[2].split() == ["compute", "2.000", "5.000", "10.000", "25.0%"]
    assert lines[4].split() == ["wait", "0.000", "0.250", "1.000", "1.2%"]
    assert lines[8].split() == ["other", "14.750", "73.8%"]
    # 120 of the (10 + 2) x 12 steps that were possible.
    assert lines[9] == "20 pairs/s, 4.0 MB between ranks, goodput 83.3%, imbalance 2"
    assert len(lines) == 10


def test_the_steps_of_a_lost_process_count_until_it_was_lost():
    # Of two processes with 3 agents each, one is lost after 4 of 10 rounds.
    end = _together([place(5.0)], 10, 0, 6, 4 * 6 + 6 * 3)
    assert end["goodput"] == 0.7
    # Of the one left, every other agent-step was left out by the schedule.
    end = _together([place(5.0, agent_steps=15)], 10, 0, 6, 4 * 6 + 6 * 3)
    assert end["goodput"] == 0.35


def test_tokens_and_mfu_are_there_where_they_are_known():
    end = _together([place(5.0, tokens=4000, flops=3e12, could=6e12)], 10, 0, 3, 30)
    assert end_table(end)[-1].startswith("5 pairs/s, 200 tokens/s, MFU 50.0%")


@pytest.mark.parametrize(
    ("of", "warnings", "said"),
    [
        ((place(15.0), place(15.0)), [], ""),
        ((place(15.0), place(15.0)), ["vm: 2 ranks share a core"], "vm: 2 ranks share a core"),
        ((place(5.0, measure=11.0),), ["vm: 2 ranks share a core"], "measuring takes 55%"),
        ((place(15.0, measure=1.9),), [], ""),
        ((place(15.0, measure=2.1),), [], "measuring takes 11%"),
        ((place(15.0, wait=3.9),), [], ""),
        ((place(10.0, wait=4.4), place(10.0, wait=4.0)), [], "ranks wait 21% of the time: take"),
        ((place(4.0, wait=9.0), place(16.0)), [], "the busiest computes 1.6 times"),
        ((place(1.0, measure=6.0, seconds=8.0),), [], ""),
    ],
)
def test_one_line_of_advice_is_of_what_is_most_off(of, warnings, said):
    advice = advise(_together(list(of), 10, 0, 30, 300), warnings)
    assert said in advice and bool(said) == bool(advice) and "\n" not in advice


def test_a_run_ends_with_the_table_also_one_that_did_rounds_again(tmp_path, capfd):
    synthesize(Choices(agents=2, pairs=8, dimension=3, holdout=0.25), tmp_path / "shards")
    shards, run = json.dumps(str(tmp_path / "shards")), tmp_path / "run"
    (tmp_path / "run.toml").write_text(
        f'[data]\nshards = {shards}\nbatch_size = 2\n[policy]\nfeatures = "columns"\n'
        "[run]\nrounds = 6\n[checkpoint]\nevery = 2\nkeep = 9\n"
    )
    assert main(["train", str(tmp_path / "run.toml"), "--out", str(run), "--progress", "none"]) == 0
    said = capfd.readouterr().err
    assert "decdpo: 6 rounds on 1 process in" in said and "goodput 100.0%" in said
    end = json.loads((run / "run.json").read_text())["end"]
    assert (end["rounds"], end["goodput"], list(end["parts"])) == (6, 1.0, list(PARTS))
    assert all(line in (run / "summary.txt").read_text() for line in end["table"])
    shutil.rmtree(run / "checkpoints" / "round_000006")
    assert main(["resume", str(run), "--progress", "none"]) == 0
    assert "2 rounds, 2 of them for the second time" in capfd.readouterr().err
    assert json.loads((run / "run.json").read_text())["end"]["goodput"] == 0.5
