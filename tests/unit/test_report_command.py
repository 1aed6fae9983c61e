"""decdpo report: the table, and what is said of the rewards."""

import json
import re
import shutil

import pytest

from decdpo.cli import main
from decdpo.data.synthetic import Choices, synthesize
from decdpo.report.chosen import explain_chosen, last_tenth
from decdpo.report.summary import summarize

RECORD = {
    "rewards/chosen": -0.5,
    "rewards/rejected": -2.0,
    "drift/chosen": -5.0,
    "imbalance/log_ratio": -1.0,
    "saturated": 0.1,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "2.72 times larger on the rejected answers"),
        ({}, "off both to answers outside the pairs"),
        ({"imbalance/log_ratio": 2.0}, "7.39 times larger on the chosen answers"),
        ({"saturated": 0.9}, "90% of the pairs are saturated"),
        ({"rewards/rejected": -0.1}, "does not learn the preferences"),
        ({"rewards/chosen": 0.5, "drift/chosen": 5.0}, "rose to 0.5"),
        ({"rewards/chosen": None}, "not recorded"),
        ({"imbalance/log_ratio": -1e5}, "times larger on the rejected"),
    ],
)
def test_a_falling_reward_is_explained_from_what_was_logged(changes, said):
    text = explain_chosen({**RECORD, **changes})
    assert said in text and "\n" not in text


def test_the_drift_is_given_in_nats():
    assert "moved by -5 nats" in explain_chosen(RECORD)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthesize(Choices(agents=2, pairs=8, dimension=3, holdout=0.25), tmp_path / "shards")
    common = '[data]\nshards = "shards"\nbatch_size = 2\n[policy]\nfeatures = "columns"\n'
    (tmp_path / "run.toml").write_text(common + "[run]\nrounds = 3\n")
    main(["train", "run.toml", "--out", "one"])
    main(["train", "run.toml", "--out", "two", "--set", "optim.lr=5.0"])
    return tmp_path


def test_runs_lie_beside_each_other_with_a_line_on_their_rewards(runs, capsys):
    capsys.readouterr()
    assert main(["report", "one", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["run", "what"]
    assert "lr 0.1" in lines[1] and "lr 5" in lines[2]
    assert lines[-2].startswith("one: rewards/chosen") and lines[-1].startswith("two: ")


def test_json_is_one_document_with_the_last_records(runs, capsys):
    capsys.readouterr()
    assert main(["report", "one", "two", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = json.loads((runs / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found[1]["loss"] == last["loss"] and found[1]["round"] == 3 and found[0]["agents"] == 2


def test_the_figure_is_drawn_twice_over(runs):
    pytest.importorskip("matplotlib")
    assert main(["report", "one", "two", "--plot", str(runs / "both.png")]) == 0
    assert (runs / "both.png").stat().st_size > 1000
    assert b"<svg" in (runs / "both.svg").read_bytes()


def test_a_run_leaves_a_figure_unless_it_is_told_not_to(runs):
    pytest.importorskip("matplotlib")
    for words, kinds in ([], [".png", ".svg"]), (["--set", "log.figure=false"], []):
        main(["train", "run.toml", "--out", "three", "--set", "run.rounds=1", *words])
        assert sorted(path.suffix for path in (runs / "three").glob("curves.*")) == kinds
        shutil.rmtree(runs / "three")


def test_what_is_no_run_or_not_begun_is_one_error(runs, capsys):
    assert main(["report", "shards"]) == 3
    (runs / "two" / "metrics.jsonl").write_text("")
    assert main(["report", "one", "two"]) == 2
    assert "no record yet" in capsys.readouterr().err
    assert main(["report", "one", "--plot", "x.gif"]) == 2
    assert main(["report", "one", "--plot", ""]) == 2


def unsealed(text):
    """Return records as earlier versions wrote them, without checksums."""
    return re.sub(r', "crc": "[0-9a-f]{8}"', "", text)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda text: "x\n" + text, "line 1 is not a record"),
        (lambda text: "[]\n" + text, "line 1 is not a record"),
        (lambda text: "\udcff\n" + text, "line 1 is not a record"),
        (lambda text: "[" * 100_000 + "\n" + text, "line 1 is not a record"),
        (lambda text: text.replace("0.6", "0.7", 1), "line 1 does not match its checksum"),
        (lambda text: unsealed(text).replace("by_agent", "by"), "round 0 has no heldout/acc"),
        (lambda text: unsealed(text).replace("system", "sys"), "round 0 has no system"),
        (lambda text: unsealed(text).replace('"bytes"', '"b"'), "round 0 has no bytes"),
        (lambda text: unsealed(text).replace('"loss": 0', '"loss": "", "x": 0'), "number loss"),
        (lambda text: unsealed(text).replace('"lr": 0', '"lr": [], "x": 0'), "number lr"),
    ],
)
def test_records_that_are_none_are_named(runs, capsys, harm, said):
    path = runs / "one" / "metrics.jsonl"
    path.write_text(harm(path.read_text()), errors="surrogateescape")
    assert main(["report", "one"]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_in_place_of_the_records_is_named(runs, capsys):
    (runs / "one" / "metrics.jsonl").unlink()
    (runs / "one" / "metrics.jsonl").mkdir()
    assert main(["report", "one"]) == 2
    assert "cannot be read: Is a directory" in capsys.readouterr().err


def noisy(rounds=100):
    """Records whose last one says the opposite of the nine before it."""
    return [
        {**RECORD, "round": t, "loss": 0.5, "system": {"elapsed_seconds": 0.0}}
        | ({"rewards/chosen": 5.0, "drift/chosen": 50.0} if t == rounds else {})
        for t in range(rounds + 1)
    ]


def test_rewards_are_explained_by_the_last_tenth_and_not_by_one_record():
    tenth = last_tenth(noisy())
    assert tenth["records"] == 10 and tenth["round"] == 100
    assert tenth["rewards/chosen"] == pytest.approx((9 * -0.5 + 5.0) / 10)
    # The very last batch alone would say that it rose by 5.
    assert "rose to 0.05" in explain_chosen(tenth)
    page = summarize(noisy(), {}, "a run")
    assert "last tenth" in page and "rose to 0.05" in page
    few = noisy(3)
    assert last_tenth(few)["records"] == 1 and last_tenth(few[:1])["round"] == 0


def test_a_broken_folder_is_named_and_the_others_are_shown(runs, capsys):
    (runs / "two" / "metrics.jsonl").write_text("")
    (runs / "notes.txt").write_text("not a run")
    capsys.readouterr()
    assert main(["report", "two", "one", "shards", "notes.txt", "nowhere"]) == 2
    said = capsys.readouterr()
    assert "one: rewards/chosen" in said.out
    for words in ("no record yet", "shards is not a run", "notes.txt is not", "nowhere is not"):
        assert words in said.err
    assert main(["report", "shards", "one", "--json"]) == 3
    assert [r["run"] for r in json.loads(capsys.readouterr().out)] == ["one"]


def test_runs_of_equal_names_are_told_apart(runs, capsys):
    for place in ("a", "b"):
        (runs / place).mkdir()
    (runs / "one").rename(runs / "a" / "run")
    (runs / "two").rename(runs / "b" / "run")
    capsys.readouterr()
    assert main(["report", "a/run", "b/run", "a/run"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]]
    assert names == ["a/run", "b/run", "a/run"]
