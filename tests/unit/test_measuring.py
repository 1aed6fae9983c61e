"""decdpo evaluate on other shards, and decdpo export: what they print and leave behind."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from limits import HANG

from decdpo.cli import main
from decdpo.data.synthetic import Choices, synthesize
from decdpo.policies.stats import Stats
from decdpo.report.card import card
from decdpo.report.heldout import heldout_table, measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three agents in ``run``, and shards of other users in ``one`` and ``three``."""
    place = tmp_path_factory.mktemp("measured")
    for name, agents, seed, holdout in (
        ("shards", 3, 0, 0.25), ("three", 3, 7, 0.0), ("one", 1, 8, 0.0), ("none", 3, 9, 0.0),
    ):  # fmt: skip
        users = Choices(agents=agents, pairs=40, dimension=3, holdout=holdout, seed=seed)
        synthesize(users, place / name)
    text = f'[data]\nshards = "{place}/shards"\nbatch_size = 4\n'
    text += '[policy]\nfeatures = "columns"\n[run]\nrounds = 4\n[checkpoint]\nevery = 2\n'
    text += "[optim]\nlr = 1.0\n"
    (place / "run.toml").write_text(text)
    assert main(["train", str(place / "run.toml"), "--out", str(place / "run")]) == 0
    return place


def evaluated(capsys, *words, status=0):
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--json"]) == status
    said = capsys.readouterr()
    return json.loads(said.out) if status == 0 else said.err


def test_the_standard_error_is_that_of_so_many_pairs(folder, capsys):
    found = evaluated(capsys, folder / "run")
    assert found["pairs"] == 30 == sum(a["pairs"] for a in found["agents"])
    for row in [found, *found["agents"]]:
        p = row["average"]["accuracy"]
        assert row["average"]["accuracy_se"] == pytest.approx(np.sqrt(p * (1 - p) / row["pairs"]))


def test_weights_count_in_the_standard_error():
    weights = np.array([3.0, 1.0, 1.0, 1.0])
    values = np.zeros(12)
    values[:2] = 4, weights.sum()
    values[6] = 0.5 * weights.sum()
    found = measured(Stats(values), float((weights**2).sum()))
    assert found["accuracy"] == 0.5
    assert found["accuracy_se"] == pytest.approx(np.sqrt(0.25 / (36 / 12)))
    assert measured(Stats.zero(), 0.0) is None


def test_as_many_other_shards_as_agents_are_dealt_out(folder, capsys):
    found = evaluated(capsys, folder / "run", "--data", folder / "three")
    assert [a["pairs"] for a in found["agents"]] == [40, 40, 40] and found["pairs"] == 120
    # The average model on all pairs is the mean of what it is on each shard.
    mean = np.mean([a["average"]["loss"] for a in found["agents"]])
    assert found["average"]["loss"] == pytest.approx(mean)
    assert found["average"] != evaluated(capsys, folder / "run")["average"]


def test_every_agent_is_measured_on_a_test_set_of_one_shard(folder, capsys):
    found = evaluated(capsys, folder / "run", "--data", folder / "one")
    assert [a["pairs"] for a in found["agents"]] == [40] * 3 and found["pairs"] == 40
    first = found["agents"][0]["average"]
    # Three times the same pairs are no more pairs.
    assert found["average"] == pytest.approx(first)
    both = evaluated(capsys, folder / "run", "--data", folder / "one", folder / "three")
    assert both["pairs"] == 160 and both["agents"][2]["pairs"] == 160


def test_pairs_that_were_trained_on_are_no_test_set(folder, capsys):
    said = evaluated(capsys, folder / "run", "--data", folder / "shards", status=2)
    assert "was trained on agent_0000.h5" in said and "leave --data out" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=3", "optim.lr says how a run trains"),
        ("log.every=1", "would be ignored"),
        ("run.rounds=9", "would be ignored"),
        ("optm.lr=3", "not a section"),
        ("data.shrads=x", "not a key"),
    ],
)
@pytest.mark.parametrize("command", [["evaluate"], ["export", "--out", "never"]])
def test_keys_that_would_be_ignored_are_refused(folder, capsys, command, override, said):
    words = [command[0], str(folder / "run"), *command[1:], "--set", override]
    assert main(words) == 2
    assert said in capsys.readouterr().err and not os.path.exists("never")


@pytest.mark.parametrize("command", ["evaluate", "export", "checkpoint show"])
def test_a_missing_round_names_those_that_are_kept(folder, capsys, command):
    more = ["--out", str(folder / "no")] if command == "export" else []
    assert main([*command.split(), str(folder / "run"), "--round", "3", *more]) == 3
    said = capsys.readouterr().err
    assert "no checkpoint of round 3; those of rounds 2, 4 are kept" in said
    assert "start anew" not in said


def test_the_table_fits_a_hundred_columns(folder, capsys):
    main(["evaluate", str(folder / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines[1:]) and "\u00b1" in lines[3]
    wild = {"loss": 8.7e27, "accuracy": 0.5, "accuracy_se": 0.5, "margin": -1.2e30}
    row = {"agent": 1000, "name": "a" * 50, "pairs": 10**7, "own": wild, "average": None}
    page = {"run": "r", "round": 1, "pairs_of": "pairs", "agents": [row], **row}
    assert all(len(line) <= 100 for line in heldout_table(page).splitlines())


def test_nothing_held_out_is_said(folder, capsys, tmp_path):
    words = ["--set", f"data.shards={folder}/none"]
    assert main(["train", str(folder / "run.toml"), "--out", str(tmp_path / "r"), *words]) == 0
    assert main(["evaluate", str(tmp_path / "r")]) == 0
    assert "name other shards with --data" in capsys.readouterr().err


def test_an_exported_model_has_a_card_and_usual_modes(folder, capsys, tmp_path):
    out = tmp_path / "model"
    assert main(["export", str(folder / "run"), "--out", str(out), "--agent", "1"]) == 0
    page = (out / "README.md").read_text()
    main(["checkpoint", "digest", str(folder / "run")])
    digests = dict(line.split() for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert digests["1"] in page and "the model of agent 1" in page
    for words in ("round ", "4 of 4", str(folder / "run"), "lr = 1.0", "np.load"):
        assert words in page
    assert out.stat().st_mode & 0o777 == 0o755
    assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {0o644}
    assert main(["export", str(folder / "run"), "--out", str(out)]) == 2
    assert main(["export", str(folder / "run"), "--out", str(out / "README.md")]) == 2


def test_a_private_umask_is_kept(folder, tmp_path):
    out = tmp_path / "model"
    code = "import os, sys; os.umask(0o077); from decdpo.cli import main; sys.exit(main())"
    words = ["export", str(folder / "run"), "--out", str(out)]
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=HANG)
    assert out.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {0o600}


def test_the_card_names_no_agent():
    agent = {"agent": 0, "name": "ada", "train": 3, "held_out": 1, "longer_preferred": 0.5}
    assert "ada" not in card({"model": "x"}, {"agents": [agent], "kind": "choices"}, "", "use")


def test_a_run_folder_that_no_file_can_name_is_refused(folder, capsys):
    out = str(folder) + "/r\udcff"
    assert main(["train", str(folder / "run.toml"), "--out", out]) == 2
    said = capsys.readouterr().err
    assert "/r\\udcff' is not UTF-8" in said and not os.path.exists(out)


def test_a_run_of_a_momentum_of_1_is_still_measured_and_exported(folder, capsys):
    words = ["--set", "optim.momentum=0.9"]
    run = folder / "endless"
    assert main(["train", str(folder / "run.toml"), "--out", str(run), *words]) == 0
    config = run / "config.toml"
    config.write_text(config.read_text().replace("momentum = 0.9", "momentum = 1.0"))
    assert evaluated(capsys, run)["pairs"] == 30
    assert main(["export", str(run), "--out", str(folder / "exported")]) == 0
    assert main(["checkpoint", "show", str(run)]) == 0
    assert main(["resume", str(run)]) == 2
    assert "optim.momentum = 1.0" in capsys.readouterr().err
