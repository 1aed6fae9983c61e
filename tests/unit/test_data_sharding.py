"""From files to shards: every pair ends in one place, the report adds up, the real sets load."""

import argparse
import collections
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from decdpo.commands.data import shard as command
from decdpo.data.index import ShardIndex
from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.reports.printed import lines
from decdpo.data.sharding import Plan, make_shards
from decdpo.errors import DataError, EnvironmentFault

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(n, **columns):
    return [
        {
            "prompt": f"question {k}",
            "chosen": f"yes {k}",
            "rejected": f"no {k}",
            **{name: values(k) for name, values in columns.items()},
        }
        for k in range(n)
    ]


def everything(index):
    """Return {(prompt, chosen, rejected): [agent, ...]} over all shards."""
    found = collections.defaultdict(list)
    for agent in range(index.num_agents):
        shard = index.open(agent)
        for pair in shard.pairs(range(shard.num_pairs)):
            found[pair.prompt, pair.chosen, pair.rejected].append(agent)
    return found


def assert_adds_up(report):
    dropped = sum(drop["count"] for drop in report["dropped"].values())
    shared = sum(row["train"] + row["held_out"] for row in report["agents"])
    assert report["num_dropped"] == dropped
    assert report["pairs"] == shared
    assert report["judgments"] == report["pairs"] + dropped + report["left_out"]["pairs"]


@pytest.fixture
def source(tmp_path):
    return write(
        tmp_path / "data.jsonl",
        rows(101, user=lambda k: "abcd"[k % 4], topic=lambda k: k % 7, weight=lambda k: k + 1),
    )


@pytest.mark.parametrize(
    "partition", ["iid", "contiguous", "dirichlet:5", "dirichlet:5:topic", "by:user", "by:topic"]
)
def test_every_pair_goes_to_one_agent(tmp_path, source, partition):
    agents = {"by:topic": 7}.get(partition, 4)
    index = make_shards([source], tmp_path / "s", Plan(partition, agents, holdout=0.2))
    found = everything(index)
    assert index.num_agents == agents
    assert sorted(found) == sorted((f"question {k}", f"yes {k}", f"no {k}") for k in range(101))
    assert all(len(owners) == 1 for owners in found.values())
    assert_adds_up(index.report)
    for entry in index.agents:
        shard = index.open(entry.agent)
        assert (shard.num_train, shard.num_heldout) == (entry.num_train, entry.num_heldout)
        assert entry.num_train >= 1 and entry.num_heldout >= 1


def test_columns_and_source_rows_stay_with_their_pair(tmp_path, source):
    index = make_shards([source], tmp_path / "s", Plan("by:user"))
    assert [entry.name for entry in index.agents] == list("abcd")
    for agent in range(4):
        shard = index.open(agent)
        assert set(shard.user) == {"abcd"[agent]}
        numbers = [int(pair.prompt.split()[1]) for pair in shard.pairs(range(shard.num_pairs))]
        np.testing.assert_array_equal(shard.source_row, np.array(numbers) + 1)
        np.testing.assert_array_equal(shard.weight, np.array(numbers) + 1)


def test_the_same_plan_gives_the_same_bytes_and_another_seed_does_not(tmp_path, source):
    made = [
        make_shards([source], tmp_path / name, Plan("iid", 3, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    files = [sorted(os.listdir(index.folder)) for index in made]
    assert files[0] == files[1] == ["agent_0000.h5", "agent_0001.h5", "agent_0002.h5", "index.json"]
    for name in files[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert made[0].sharding == made[1].sharding != made[2].sharding
    assert made[0].digest == made[1].digest != made[2].digest


def test_by_file_needs_no_column(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", rows(9)) for name in ("x", "y")]
    index = make_shards(paths, tmp_path / "s", Plan("by:file"))
    assert [entry.name for entry in index.agents] == ["x", "y"]
    assert sorted(index.open(1).source_row) == list(range(1, 10))
    assert set(index.open(1).source_file) == {"y.jsonl"}
    assert [file["rows"] for file in index.report["sources"]] == [9, 9]


def test_the_report_names_the_columns_used_and_not_used(tmp_path):
    data = rows(12, topic=lambda k: k % 3, source=lambda k: "web", user=lambda k: "ab"[k % 2])
    data[5]["late"] = 1
    source = write(tmp_path / "d", data)
    index = make_shards([source], tmp_path / "s", Plan("by:user", group="topic"))
    (file,) = index.report["sources"]
    assert file["columns_used"] == {
        "prompt": ["prompt"],
        "chosen": ["chosen"],
        "rejected": ["rejected"],
        "user": ["user"],
        "partition": ["user"],
        "group": ["topic"],
    }
    assert file["columns_unused"] == ["source", "late"]


def test_rows_are_counted_in_each_file(tmp_path):
    (tmp_path / "b").mkdir()
    one, two = rows(6), rows(8)
    two[6]["chosen"] = one[2]["rejected"] = ""
    paths = [write(tmp_path / "x.jsonl", one), write(tmp_path / "b" / "x.jsonl", two)]
    index = make_shards(paths, tmp_path / "s", Plan("iid", 2))
    assert index.report["dropped"] == {
        "empty answer": {"count": 2, "rows": [3, 7], "files": ["x.jsonl", "b/x.jsonl"]}
    }
    assert "dropped 2: empty answer (source rows 3 of x.jsonl, 7 of b/x.jsonl)" in "\n".join(
        lines(index.report)
    )
    for agent in range(2):
        shard = index.open(agent)
        for k, pair in enumerate(shard.pairs(range(shard.num_pairs))):
            source = {"x.jsonl": one, "b/x.jsonl": two}[shard.source_file[k]]
            assert source[shard.source_row[k] - 1]["prompt"] == pair.prompt
            assert shard.places[k] == f"{shard.source_row[k]} of {shard.source_file[k]}"
    assert index.report["held_out_by"] == "pair"
    with pytest.raises(DataError, match=r"source rows 7 of b/x.jsonl, 3 of x.jsonl"):
        make_shards(paths, tmp_path / "t", Plan("iid", 2, strict=True))


def test_one_file_needs_no_name(tmp_path, source):
    index = make_shards([source], tmp_path / "s", Plan("iid", 2))
    assert index.open(0).source_file is None
    assert index.open(0).places[0] == str(index.open(0).source_row[0])


@pytest.mark.parametrize("nobody", [None, float("nan"), "", " "])
def test_rows_of_nobody_are_dropped_when_people_are_agents(tmp_path, nobody):
    people = [1.0, 2, nobody]
    source = write(tmp_path / "d", rows(12, user=lambda k: people[k % 3]))
    index = make_shards([source], tmp_path / "s", Plan("by:user"))
    assert [entry.name for entry in index.agents] == ["1", "2"]
    assert index.report["dropped"]["no user"]["count"] == 4
    index = make_shards([source], tmp_path / "t", Plan("iid", 2))
    assert index.report["pairs"] == 12
    source = write(tmp_path / "e", rows(12, topic=lambda k: people[k % 3]))
    assert make_shards([source], tmp_path / "u", Plan("by:topic")).num_agents == 2


def judged(labels):
    return [
        {"prompt": f"p{k}", "answer1": f"x{k}", "answer2": f"y{k}", "label": label}
        for k, label in enumerate(labels)
    ]


@pytest.mark.parametrize("late, why", [(-1, "looks like a scale"), (7, "looks like a scale")])
def test_labels_far_from_the_beginning_are_looked_at_too(tmp_path, late, why):
    source = write(tmp_path / "d", judged([1, 2] * 80 + [late]))
    with pytest.raises(DataError, match=f"d: label says .*{why}"):
        make_shards([source], tmp_path / "s", Plan("iid", 2))


def test_zeros_and_ones_are_looked_at_to_the_end(tmp_path):
    source = write(tmp_path / "d", judged([1] * 150 + [0]))
    with pytest.raises(DataError, match="d: label says 0 and 1"):
        make_shards([source], tmp_path / "s", Plan("iid", 2))


def test_labels_not_understood_are_shown(tmp_path):
    source = write(tmp_path / "d", judged(["left", "right", "left"]))
    with pytest.raises(DataError, match=r"the labels met are 'left' \(2\), 'right' \(1\)"):
        make_shards([source], tmp_path / "s", Plan("iid", 2))


def test_values_without_an_agent_are_reported(tmp_path, source):
    index = make_shards([source], tmp_path / "s", Plan("by:topic", 3))
    assert [entry.name for entry in index.agents] == ["0", "1", "2"]
    assert index.report["left_out"] == {"values": 4, "pairs": 101 - 45}
    assert_adds_up(index.report)


def test_groups_are_held_out_from_everyone(tmp_path, source):
    plan = Plan("by:user", group="topic", holdout=0.3)
    index = make_shards([source], tmp_path / "s", plan)
    sides = {True: set(), False: set()}
    for agent in range(4):
        shard = index.open(agent)
        for row, source_row in enumerate(shard.source_row):
            sides[row < shard.num_train].add((source_row - 1) % 7)
    assert not sides[True] & sides[False] and len(sides[False]) == 2
    assert index.report["held_out_by"] == "column topic"


def test_judgments_of_one_row_are_held_out_together(tmp_path):
    votes = [[f"w{k}", "a1" if k % 3 else "a2"] for k in range(6)]
    source = write(
        tmp_path / "votes.jsonl",
        [{"prompt": f"p{k}", "a1": "x", "a2": "y", "votes": votes} for k in range(40)],
    )
    index = make_shards([source], tmp_path / "s", Plan("by:user", holdout=0.25))
    held = [set(s.source_row[s.num_train :]) for s in map(index.open, range(6))]
    assert held[0] and all(rows == held[0] for rows in held)
    assert index.report["held_out_by"] == "source row"
    assert index.report["contradictions"] == {"rows_with_several": 40, "contradicted": 40}


def test_dropped_rows_are_counted_and_named(tmp_path):
    data = rows(10)
    data[2]["chosen"] = data[7]["chosen"] = ""
    data[4]["rejected"] = False
    source = write(tmp_path / "d.jsonl", data)
    index = make_shards([source], tmp_path / "s", Plan("iid", 2))
    assert index.report["dropped"] == {
        "empty answer": {"count": 2, "rows": [3, 8]},
        "rejected is not text": {"count": 1, "rows": [5]},
    }
    assert_adds_up(index.report)
    with pytest.raises(DataError, match=r"2 empty answer; 1 rejected is not text .*3, 5, 8"):
        make_shards([source], tmp_path / "t", Plan("iid", 2, strict=True))
    assert sorted(os.listdir(tmp_path)) == ["d.jsonl", "s"]


def test_a_column_that_some_pairs_lack_is_left_out_and_reported(tmp_path):
    data = rows(10)
    data[3]["weight"] = 2.0
    index = make_shards([write(tmp_path / "d", data)], tmp_path / "s", Plan("iid", 2))
    assert index.report["incomplete_columns"] == {"weight": 9}
    assert index.open(0).weight is None
    with pytest.raises(DataError, match="9 without weight"):
        make_shards([tmp_path / "d"], tmp_path / "t", Plan("iid", 2, strict=True))


def test_explicit_features_are_kept(tmp_path):
    data = [
        {"chosen_features": [k, 1.0], "rejected_features": [0.5, -k], "user": k % 2}
        for k in range(20)
    ]
    data.append({"chosen_features": [1.0], "rejected_features": [2.0], "user": 1})
    index = make_shards([write(tmp_path / "d", data)], tmp_path / "s", Plan("by:user"))
    assert index.report["dropped"] == {"features of another length": {"count": 1, "rows": [21]}}
    shard = index.open(1)
    chosen, rejected = shard.features
    np.testing.assert_array_equal(chosen[:, 0], shard.source_row - 1)
    np.testing.assert_array_equal(rejected, np.stack([np.full(10, 0.5), -chosen[:, 0]], 1))


@pytest.mark.parametrize(
    "plan, message",
    [
        (Plan("iid"), "needs a number of agents"),
        (Plan("iid", 0), "0 agents"),
        (Plan("nonsense", 2), "unknown partition"),
        (Plan("by:colour"), "no column 'colour' for the partition"),
        (Plan("iid", 2, group="colour"), "no column 'colour' for the group"),
        (Plan("by:user", 9), "only 4 values"),
        (Plan("iid", 102), "102 agents, but 101 pairs"),
        (Plan("iid", 10**20), "agents, but 101 pairs"),
        (Plan("dirichlet:1e-9", 50), "agents would have no training pair"),
        (Plan("iid", 2, seed=-1), "seed -1"),
        (Plan("iid", 2, seed=2**64), "seed"),
        (Plan("by:user", group="user"), "agents would have no training pair: ."),
        (Plan("iid", 2, holdout=1.5), "holdout 1.5"),
        (Plan("iid", 2, columns=Columns(user="usr")), "no column 'usr'"),
    ],
)
def test_plans_that_do_not_fit_leave_nothing_behind(tmp_path, source, plan, message):
    with pytest.raises(DataError, match=message) as error:
        make_shards([source], tmp_path / "s", plan)
    assert error.value.remedy
    assert os.listdir(tmp_path) == ["data.jsonl"]


def test_sources_must_agree_on_how_prompts_are_written(tmp_path, source):
    talk = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    other = write(tmp_path / "hh.jsonl", [talk])
    with pytest.raises(DataError, match="hh, plain"):
        make_shards([source, other], tmp_path / "s", Plan("iid", 2))


def test_force_keeps_the_reference_values_and_no_tokens_of_the_old_pairs(tmp_path, source):
    out = tmp_path / "s"
    index = make_shards([source], out, Plan("iid", 2))
    shard = index.open(0)
    shard.references.add([(b"k" * 32, b"value")])
    shard.tokens.add([(b"k" * 32, b"tokens")])
    again = make_shards([source], out, Plan("iid", 2, holdout=0.5), force=True).open(1)
    assert again.references.find([b"k" * 32]) == {b"k" * 32: [b"value"]}
    assert not [name for name in os.listdir(out) if name.endswith(".tokens")]


def test_force_replaces_shards_and_nothing_else(tmp_path, source):
    out = tmp_path / "s"
    make_shards([source], out, Plan("iid", 4))
    with pytest.raises(DataError, match="not empty"):
        make_shards([source], out, Plan("iid", 2))
    assert make_shards([source], out, Plan("iid", 2), force=True).num_agents == 2
    assert len(os.listdir(out)) == 3 and len(os.listdir(tmp_path)) == 2
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="more than shards: notes.txt"):
        make_shards([source], out, Plan("iid", 2), force=True)
    with pytest.raises(DataError, match="is a file"):
        make_shards([source], source, Plan("iid", 2), force=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    (out / "index.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match="more than shards"):
        make_shards([source], out, Plan("iid", 2), force=True)


def test_a_folder_that_cannot_be_is_refused(tmp_path, source):
    with pytest.raises(DataError, match="File name too long"):
        make_shards([source], tmp_path / ("x" * 300), Plan("iid", 2))


def test_a_source_given_twice_is_refused(tmp_path, source):
    (tmp_path / "alias.jsonl").symlink_to(source)
    with pytest.raises(DataError, match="alias.jsonl and .* are the same file"):
        make_shards([source, tmp_path / "alias.jsonl"], tmp_path / "s", Plan("iid", 2))


@pytest.mark.parametrize(("text", "why"), [("[]", ""), ("a,b\n", ""), ("[1, 2]", "not an object")])
def test_a_source_without_records_is_named(tmp_path, text, why):
    path = tmp_path / "none"
    path.write_text(text)
    with pytest.raises(DataError, match=f"none holds no record.*{why}"):
        make_shards([path], tmp_path / "s", Plan("iid", 2))


def test_values_that_are_no_text_are_dropped(tmp_path):
    half = "\ud800"
    source = write(tmp_path / "a.jsonl", rows(6, user=lambda k: half if k == 2 else str(k % 2)))
    index = make_shards([source], tmp_path / "s", Plan("by:user"))
    assert index.report["dropped"]["user is not valid Unicode"]["count"] == 1
    source = write(tmp_path / "b.jsonl", rows(6, topic=lambda k: half if k == 2 else str(k % 2)))
    index = make_shards([source], tmp_path / "t", Plan("by:topic"))
    assert index.report["dropped"]["topic is not valid Unicode"]["count"] == 1


def test_an_index_of_endless_brackets_is_refused(tmp_path):
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="cannot be read"):
        ShardIndex.load(tmp_path)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, source, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EnvironmentFault, match="No space left"):
        make_shards([source], tmp_path / "s", Plan("iid", 2))
    assert os.listdir(tmp_path) == ["data.jsonl"]


def shard_command(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_prints_one_json_document(tmp_path, source, capsys):
    out = tmp_path / "s"
    assert shard_command(source, "--out", out, "--partition", "by:user", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == 101 and report["digest"] == ShardIndex.load(out).digest


@pytest.mark.parametrize(
    "scale, chosen", [("signed", "y"), ("=-3,3", "y"), ("3,-3", "x"), ("-3", None), ("1,1", None)]
)
def test_the_command_takes_scales(tmp_path, scale, chosen):
    source = write(tmp_path / "d", judged([1, 2, 3]))
    option = [f"--label-scale={scale.removeprefix('=')}"]
    arguments = [source, "--out", tmp_path / "s", "--agents", 1, *option]
    if chosen is None:
        with pytest.raises(SystemExit):
            shard_command(*arguments)
    else:
        assert shard_command(*arguments) == 0
        shard = ShardIndex.load(tmp_path / "s").open(0)
        assert {pair.chosen[0] for pair in shard.pairs(range(3))} == {chosen}


def test_the_command_prints_a_report(tmp_path, capsys):
    data = rows(30, a=lambda k: "x" * k, b=lambda k: "y", best=lambda k: "-+"[k % 2])
    source = write(tmp_path / "d", data + [{**data[0], "best": "?"}])
    options = ["--answers", "a,b", "--label", "best", "--label-values=-,+"]
    assert shard_command(source, "--out", tmp_path / "s", "--agents", 2, *options) == 0
    text = capsys.readouterr().out
    assert "dropped 1: label not understood (source rows 31)" in text
    assert "dropped 1: empty answer (source rows 1)" in text
    assert "2 shards in" in text


def test_the_command_module_imports_nothing_heavy():
    code = "import sys, decdpo.commands.data.shard; print({'h5py', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "set()", found.stderr


# The embedded set


def generator_module():
    spec = importlib.util.spec_from_file_location("mp", ROOT / "tools" / "make_preferences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_embedded_set_is_what_its_generator_writes(tmp_path):
    maker = generator_module()
    maker.write(tmp_path / "p.jsonl.gz", maker.preferences(400, seed=0))
    # Compared unzipped: another zlib may compress the same records differently.
    made = gzip.decompress((tmp_path / "p.jsonl.gz").read_bytes())
    assert made == gzip.decompress((ROOT / "data" / "preferences.jsonl.gz").read_bytes())
    assert (ROOT / "data" / "preferences.jsonl.gz").stat().st_size < 500_000


def test_the_embedded_set_shards_by_user_without_loss(tmp_path):
    plan = Plan("by:user", strict=True)
    index = make_shards([ROOT / "data" / "preferences.jsonl.gz"], tmp_path / "s", plan)
    names = ["ada", "ben", "chloe", "dev", "emil", "fatou", "grace", "hugo"]
    assert [entry.name for entry in index.agents] == names
    assert all((e.num_train, e.num_heldout) == (360, 40) for e in index.agents)
    assert (index.open(0).score_gap > 0).all()


# The real sets


def real(pattern):
    found = sorted(REAL.glob(pattern))
    if not found:
        pytest.skip(f"the real data are not at {REAL}")
    return found


def test_hh_rlhf_reports_its_odd_rows(tmp_path):
    index = make_shards(real("hh_rlhf/*.gz"), tmp_path / "s", Plan("dirichlet:0.5", 8))
    report = index.report
    assert index.prompt_format == "hh"
    assert (report["rows_read"], report["pairs"]) == (2312, 2303)
    assert {reason: drop["count"] for reason, drop in report["dropped"].items()} == {
        "prompts differ": 5,
        "empty answer": 4,
    }
    assert report["difference"]["mix_distance"] > 2 * report["difference"]["if_dealt_at_random"]
    pair = index.open(0).pair(0)
    assert pair.prompt.startswith("\n\nHuman:") and pair.prompt.endswith("\n\nAssistant:")


def test_ukpconvarg1_votes_by_person(tmp_path):
    index = make_shards(real("ukp*/*.gz"), tmp_path / "s", Plan("by:user", 56))
    report = index.report
    assert (report["rows_read"], report["judgments"]) == (16927, 84445)
    assert report["dropped"]["tie"]["count"] == 19105
    assert_adds_up(report)
    longer = report["longer_preferred"]
    assert longer["lowest_agent"] < 0.55 < 0.84 < longer["highest_agent"]
    assert set(index.open(0).user) == {index.agents[0].name}


def test_ukpconvarg1_gold_by_topic(tmp_path):
    plan = Plan("by:topic", columns=Columns(label=("gold",)))
    index = make_shards(real("ukp*/*.gz"), tmp_path / "s", plan)
    assert index.num_agents == 32
    assert index.report["dropped"]["no label"]["count"] == 846
    assert_adds_up(index.report)


def test_persona_files_are_agents(tmp_path):
    index = make_shards(real("persona/*.gz"), tmp_path / "s", Plan("by:file", strict=True))
    assert index.num_agents == 10
    assert {entry.num_train for entry in index.agents} == {900}
    assert {pair.chosen for pair in index.open(0).pairs(range(50))} == {" Yes", " No"}


def test_pandalm_annotators_and_its_dirt(tmp_path):
    index = make_shards(real("pandalm/*.gz"), tmp_path / "s", Plan("by:user"))
    dropped = index.report["dropped"]
    assert [entry.name for entry in index.agents] == ["annotator1", "annotator2", "annotator3"]
    assert dropped["response1 is not text"]["rows"] == [158, 159, 160, 165]
    assert dropped["response2 is not text"]["rows"] == [162, 163]
    assert index.report["contradictions"]["contradicted"] == 68
    assert_adds_up(index.report)


def test_sharegpt_messages(tmp_path):
    index = make_shards(real("sharegpt*/*.gz"), tmp_path / "s", Plan("iid", 4))
    assert index.report["num_dropped"] == 0
    warnings = {doubt["kind"] for doubt in index.report["doubts"] if doubt["warning"]}
    assert warnings == {"duplicate"}
    assert index.prompt_format == "messages"
    assert index.report["pairs"] == 300
    assert json.loads(index.open(0).pair(0).prompt)[-1]["role"] == "user"
