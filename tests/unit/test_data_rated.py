"""Rated answers become pairs: each once, far enough apart, held out as asked, and reported."""

import gzip
import itertools
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from decdpo.cli import main
from decdpo.data.gaps import drawn, gaps
from decdpo.data.ingest.formats.rated import RatedColumns
from decdpo.data.ingest.reports.printed import lines
from decdpo.data.plan import Plan, RatedPlan
from decdpo.data.sharding import make_shards
from decdpo.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
JESTER = ROOT.parent / "shared" / "data" / "jester"
ASK = "Say something."


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def items(tmp_path):
    return write(tmp_path / "items.jsonl", [{"item": k, "text": f"item {k}."} for k in range(12)])


def votes(people=3, items=12, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"user": f"p{person}", "item": item, "rating": round(float(rng.uniform(-9, 9)), 1)}
        for person in range(people)
        for item in range(items)
    ]


@pytest.fixture
def ratings(tmp_path):
    return write(tmp_path / "ratings.jsonl", votes())


def plan(items, *, own=None, gap=0.0, text=ASK, **more):
    rated = RatedPlan(RatedColumns(prompt_text=text), items, gap, own)
    return Plan(**{"partition": "by:user", "holdout": 0.0, **more, "rated": rated})


def held(shard):
    """Return the texts in training pairs, and those in held-out pairs."""
    pairs = shard.pairs(range(shard.num_pairs))
    sides = pairs[: shard.num_train], pairs[shard.num_train :]
    return [{text for p in side for text in (p.chosen, p.rejected)} for side in sides]


def scores(index, agent):
    """Return the scores of the chosen and of the rejected answers of an agent's pairs."""
    with h5py.File(index.folder / index.agents[agent].file) as file:
        return file["score_chosen"][:], file["score_rejected"][:]


def found(index):
    """Return (agent, chosen, rejected, score chosen, score rejected) of all pairs, sorted."""
    pairs = []
    for agent in range(index.num_agents):
        shard = index.open(agent)
        numbers = np.stack(scores(index, agent), axis=1).tolist()
        for pair, number in zip(shard.pairs(range(shard.num_pairs)), numbers):
            pairs.append((agent, pair.chosen, pair.rejected, *number))
    return sorted(pairs)


@pytest.mark.parametrize("gap", [0, 0.3, 3.0, 8.1])
def test_pairs_are_numbered_as_listing_them_finds_them(gap):
    rng = np.random.default_rng(1)
    values, blocks = np.round(rng.uniform(-5, 5, 60), 1), rng.integers(0, 4, 60)
    space = gaps(values, blocks, gap)
    expected = {
        (i, j)
        for i, j in itertools.permutations(range(60), 2)
        if blocks[i] == blocks[j] and values[i] > values[j]
        # In tenths, since 8.1 - 5.1 is less than 3 in binary numbers.
        and round(10 * values[i]) - round(10 * values[j]) >= round(10 * gap)
    }
    higher, lower = space.pairs(np.arange(len(space)))
    assert set(zip(higher.tolist(), lower.tolist())) == expected
    assert len(space) == len(expected)
    per_block = np.bincount(blocks[[i for i, _ in expected]], minlength=4)
    np.testing.assert_array_equal(space.upto(blocks, np.arange(4)), np.cumsum(per_block))


def test_drawing_takes_each_number_once():
    rng = np.random.default_rng(2)
    taken = drawn(10**9, 50, rng)
    assert len(set(taken.tolist())) == 50 and (np.diff(taken) > 0).all() and taken[-1] < 10**9
    np.testing.assert_array_equal(drawn(7, 50, rng), np.arange(7))


def test_every_pair_far_enough_apart_is_one(tmp_path, ratings, items):
    index = make_shards([ratings], tmp_path / "s", plan(items, gap=3.0))
    rows = votes()
    expected = sorted(
        (int(a["user"][1]), f"item {a['item']}.", f"item {b['item']}.", a["rating"], b["rating"])
        for a, b in itertools.permutations(rows, 2)
        if a["user"] == b["user"] and round(10 * a["rating"]) - round(10 * b["rating"]) >= 30
    )
    assert found(index) == expected
    assert [entry.name for entry in index.agents] == ["p0", "p1", "p2"]
    shard = index.open(1)
    assert set(shard.user) == {"p1"}
    assert {pair.prompt for pair in shard.pairs(range(shard.num_pairs))} == {ASK}
    higher = [rows[row - 1] for row in shard.source_row]
    assert [row["rating"] for row in higher] == scores(index, 1)[0].tolist()
    report = index.report["ratings"]
    assert (report["ratings"], report["answers"], report["prompts"]) == (36, 12, 1)
    assert report["far_enough"] == len(expected) == index.report["pairs"]


@pytest.mark.parametrize("own, count", [(3, 3), (0.25, 3), (11, 10)])
def test_no_training_pair_holds_an_own_item_held_out(tmp_path, ratings, items, own, count):
    index = make_shards([ratings], tmp_path / "s", plan(items, own=own))
    kept = []
    for agent in range(3):
        trained, out = held(index.open(agent))
        assert not trained & out
        assert len(out) == count and len(trained) == 12 - count
        kept.append(frozenset(out))
    assert len(set(kept)) > 1 or count == 10
    report = index.report
    assert report["held_out_by"].startswith("each person's own items")
    between, pairs = report["ratings"]["between"], report["pairs"]
    assert report["ratings"]["far_enough"] == pairs + between == 3 * 66
    assert not [doubt for doubt in report["doubts"] if doubt["kind"] == "leak"]


def test_what_a_person_holds_out_does_not_depend_on_the_others(tmp_path, ratings, items):
    alone = [row for row in votes()[::-1] if row["user"] == "p1"]
    other = write(tmp_path / "alone.jsonl", alone)
    made = [
        make_shards([source], tmp_path / name, plan(items, own=4))
        for source, name in ((ratings, "a"), (other, "b"))
    ]
    assert held(made[0].open(1)) == held(made[1].open(0))


def test_one_prompt_holds_out_own_items_by_default(tmp_path, ratings, items):
    index = make_shards([ratings], tmp_path / "s", plan(items, holdout=0.25))
    for agent in range(3):
        trained, out = held(index.open(agent))
        assert not trained & out and len(out) == 3


def test_a_group_of_items_is_held_out_from_everyone(tmp_path, ratings, items):
    index = make_shards([ratings], tmp_path / "s", plan(items, group="item", holdout=0.25))
    sides = [held(index.open(agent)) for agent in range(3)]
    assert {frozenset(out) for _, out in sides} == {frozenset(sides[0][1])}
    assert len(sides[0][1]) == 3 and not sides[0][1] & set.union(*(side[0] for side in sides))
    assert index.report["leaks"]["answers"]["trained_on"] == 0


@pytest.mark.parametrize("partition, agents", [("by:user", 3), ("iid", 2), ("contiguous", 2)])
def test_no_agent_has_more_pairs_than_its_limit(tmp_path, ratings, items, partition, agents):
    made = {
        seed: make_shards(
            [ratings],
            tmp_path / f"s{seed}",
            plan(
                items, own=5, partition=partition, agents=agents, pairs_per_agent=8, seed=seed % 2
            ),
        )
        for seed in (0, 1, 2)
    }
    for index in made.values():
        assert [(e.num_train, e.num_heldout) for e in index.agents] == [(8, 8)] * agents
        report = index.report
        assert report["over_limit"] > 0
        ways = report["pairs"] + report["over_limit"] + report["ratings"]["between"]
        assert ways == report["ratings"]["far_enough"]
    assert found(made[0]) == found(made[2]) != found(made[1])
    everything = make_shards(
        [ratings], tmp_path / "all", plan(items, own=5, partition=partition, agents=agents)
    )
    assert {pair[1:] for pair in found(made[0])} <= {pair[1:] for pair in found(everything)}


def test_preferences_have_the_same_limit(tmp_path):
    source = write(
        tmp_path / "p.jsonl",
        [{"prompt": f"q{k}", "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(40)],
    )
    index = make_shards([source], tmp_path / "s", Plan("iid", 2, holdout=0.5, pairs_per_agent=6))
    assert [(e.num_train, e.num_heldout) for e in index.agents] == [(6, 6), (6, 6)]
    assert index.report["over_limit"] == 16 and index.report["pairs"] == 12 + 12


def test_people_with_most_training_pairs_become_agents(tmp_path, items):
    most = {"p0": 4, "p1": 9, "p2": 6, "p3": 12}
    rows = [row for row in votes(4) if row["item"] < most[row["user"]]]
    source = write(tmp_path / "r.jsonl", rows)
    index = make_shards([source], tmp_path / "s", plan(items, agents=2))
    assert [entry.name for entry in index.agents] == ["p1", "p3"]
    assert index.report["left_out"]["values"] == 2


ULTRA = {
    "instruction": "Why?",
    "completions": [
        {"response": "because", "overall_score": 7.5, "annotations": {"help": {"Rating": "2"}}},
        {"response": "no idea", "overall_score": 2, "annotations": {"help": {"Rating": "5"}}},
        {"response": "so", "overall_score": 7.5, "annotations": {"help": {"Rating": "1"}}},
    ],
}
NECTAR = {
    "prompt": "Why?",
    "answers": [{"answer": "b", "rank": 2, "model": "x"}, {"answer": "a", "rank": 1, "model": "y"}],
}
ARGILLA = {"instruction": "Why?", "generations": ["a", "b", "c"], "ratings": [5, 3, 3]}


@pytest.mark.parametrize(
    "row, columns, expected",
    [
        (ULTRA, None, {("because", "no idea", 7.5, 2.0), ("so", "no idea", 7.5, 2.0)}),
        (
            ULTRA,
            RatedColumns(rating="annotations.help.Rating"),
            {("no idea", "because", 5, 2), ("no idea", "so", 5, 1), ("because", "so", 2, 1)},
        ),
        (NECTAR, None, {("a", "b", -1.0, -2.0)}),
        (ARGILLA, None, {("a", "b", 5.0, 3.0), ("a", "c", 5.0, 3.0)}),
    ],
)
def test_lists_of_answers_are_pairs_of_one_prompt(tmp_path, row, columns, expected):
    prompt = "prompt" if "prompt" in row else "instruction"
    source = write(tmp_path / "l.jsonl", [{**row, prompt: f"Why {k}?"} for k in range(10)])
    rated = None if columns is None else RatedPlan(columns)
    index = make_shards([source], tmp_path / "s", Plan("iid", 1, holdout=0.2, rated=rated))
    assert {pair[1:] for pair in found(index)} == expected
    assert index.report["held_out_by"] == "prompt"
    assert index.report["leaks"]["prompts"] == {"held_out": 2, "trained_on": 0}
    shard = index.open(0)
    prompts = [pair.prompt for pair in shard.pairs(range(shard.num_pairs))]
    assert sorted(prompts) == sorted(f"Why {k}?" for k in range(10) for _ in expected)


def test_rows_of_one_answer_are_pairs_of_one_prompt(tmp_path):
    rows = [
        {"prompt": f"q{k // 3}", "response": f"r{k}", "helpfulness": k % 3, "verbosity": 1}
        for k in range(30)
    ]
    source = write(tmp_path / "h.jsonl", rows)
    rated = RatedPlan(RatedColumns(rating="helpfulness"), min_gap=2)
    index = make_shards([source], tmp_path / "s", Plan("iid", 1, holdout=0.0, rated=rated))
    expected = sorted((f"r{3 * k + 2}", f"r{3 * k}") for k in range(10))
    assert [pair[1:3] for pair in found(index)] == expected
    assert index.report["sources"][0]["columns_unused"] == ["verbosity"]
    with pytest.raises(DataError, match="one answer") as caught:
        make_shards([source], tmp_path / "t", Plan("iid", 1))
    assert "--rating" in caught.value.remedy


def test_messages_are_prompts_too(tmp_path):
    talk = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": talk, "response": text, "rating": n} for n, text in enumerate("abc")]
    source = write(tmp_path / "m.jsonl", rows)
    rated = RatedPlan(RatedColumns(rating="rating"))
    index = make_shards([source], tmp_path / "s", Plan("iid", 1, holdout=0.0, rated=rated))
    assert index.prompt_format == "messages" and index.report["pairs"] == 3
    assert json.loads(index.open(0).pairs([0])[0].prompt) == talk


def test_a_prompt_may_stand_beside_the_item(tmp_path, ratings):
    items = write(
        tmp_path / "i.jsonl",
        [{"item": k, "text": f"item {k}.", "prompt": f"kind {k % 2}"} for k in range(12)],
    )
    index = make_shards([ratings], tmp_path / "s", plan(items, text=None, holdout=0.0))
    assert index.report["pairs"] == 3 * 2 * 15
    for agent in range(3):
        shard = index.open(agent)
        for pair in shard.pairs(range(shard.num_pairs)):
            numbers = [int(text.split()[1][:-1]) for text in (pair.chosen, pair.rejected)]
            assert {n % 2 for n in numbers} == {int(pair.prompt.split()[1])}


def test_dirt_is_dropped_and_named(tmp_path, items):
    rows = votes(2)
    rows[3]["rating"] = "n/a"
    rows[4]["item"] = 99
    rows[5]["user"] = None
    rows += [{**rows[0], "rating": 5}]
    source = write(tmp_path / "r.jsonl", rows)
    index = make_shards([source], tmp_path / "s", plan(items))
    dropped = {reason: drop["rows"] for reason, drop in index.report["dropped"].items()}
    assert dropped == {
        "rating is not a finite number": [4],
        "item without a text": [5],
        "no user": [6],
        "rated again by the same person": [25],
    }
    assert index.report["num_dropped"] == 4
    assert index.report["ratings"]["ratings"] == len(rows) - 4 == 21
    with pytest.raises(DataError, match="--strict"):
        make_shards([source], tmp_path / "t", plan(items, strict=True))


def test_texts_that_are_equal_are_one_item(tmp_path):
    items = write(
        tmp_path / "i.jsonl",
        [{"item": k, "text": f"item {k // 2}" + " " * (k % 2)} for k in range(12)],
    )
    source = write(tmp_path / "r.jsonl", votes(2))
    index = make_shards([source], tmp_path / "s", plan(items, own=2))
    assert index.report["ratings"]["answers"] == 6
    assert index.report["dropped"]["rated again by the same person"]["count"] == 12
    for agent in range(2):
        trained, out = held(index.open(agent))
        assert not {t.strip() for t in trained} & {t.strip() for t in out}


@pytest.mark.parametrize(
    "change, what, remedy",
    [
        ({"own": 2, "group": "item"}, "hold out different pairs", "leave one"),
        ({"own": 0.0}, "neither a number of items nor a share", "20"),
        ({"own": 2.5}, "neither a number of items nor a share", "0.2"),
        ({"gap": -1.0}, "--min-gap", "0 or more"),
        ({"gap": float("nan")}, "--min-gap", "0 or more"),
        ({"gap": 40.0}, "40 or more apart", "--min-gap"),
        ({"pairs_per_agent": 0}, "--pairs-per-agent", "1 or more"),
        ({"text": None}, "there is no prompt", "--prompt-text"),
        ({"group": "genre"}, "no column 'genre'", "use one of"),
        ({"partition": "by:town"}, "no column 'town'", "use one of"),
        ({"agents": 9}, "only 3 values", "--agents 3"),
    ],
)
def test_plans_that_do_not_fit_are_refused(tmp_path, ratings, items, change, what, remedy):
    with pytest.raises(DataError) as caught:
        make_shards([ratings], tmp_path / "s", plan(items, **change))
    assert what in caught.value.what and remedy in caught.value.remedy
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "row, what",
    [
        ({"item": 3, "text": "another"}, "item '3' has another text"),
        ({"item": None, "text": "x"}, "row 13: no item"),
        ({"item": 40, "text": " "}, "row 13: empty text"),
        ({"item": 40}, "row 13: no text"),
    ],
)
def test_items_without_one_text_are_refused(tmp_path, ratings, items, row, what):
    items.write_text(items.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        make_shards([ratings], tmp_path / "s", plan(items))
    assert what in str(caught.value)


def test_a_column_that_names_items_must_be_known(tmp_path, ratings):
    items = write(tmp_path / "i.jsonl", [{"joke": 1, "text": "a"}, {"joke": 2, "text": "b"}])
    with pytest.raises(DataError) as caught:
        make_shards([ratings], tmp_path / "s", plan(items))
    assert "--item" in caught.value.remedy


def test_the_command_reads_rated_answers(tmp_path, ratings, items, capsys):
    out = tmp_path / "s"
    options = ["--items", str(items), "--prompt-text", ASK, "--min-gap", "3"]
    more = ["--partition", "by:user", "--holdout-items-per-user", "4", "--pairs-per-agent", "9"]
    assert main(["shard", str(ratings), *options, *more, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "format ratings" in shown and "3 or more apart" in shown
    assert "each person's own items (4 of each)" in shown
    assert all(len(line) <= 100 for line in shown.splitlines() if "/" not in line)
    again = main(
        ["shard", str(ratings), *options, *more, "--holdout", "0.2", "--out", str(tmp_path / "t")]
    )
    assert again == 2 and "--holdout 0.2 would be ignored" in capsys.readouterr().err


def test_options_of_ratings_are_refused_of_preferences(tmp_path):
    rows = [{"prompt": f"q{k}", "chosen": f"y{k}", "rejected": f"n{k}"} for k in range(9)]
    source = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match="rating"):
        make_shards([source], tmp_path / "s", Plan("iid", 1, rated=RatedPlan(min_gap=2)))


@pytest.mark.skipif(not JESTER.is_dir(), reason="the ratings of jokes are not on this machine")
def test_jester_pairs_of_people(tmp_path):
    with gzip.open(JESTER / "ratings.csv.gz", "rt") as stream:
        head = [next(stream) for _ in range(8001)]
    source = tmp_path / "ratings.csv"
    source.write_text("".join(head[:8001]))
    rated = RatedPlan(RatedColumns(prompt_text="Tell me a joke."), JESTER / "jokes.jsonl", 3, 0.2)
    index = make_shards(
        [source], tmp_path / "s", Plan("by:user", pairs_per_agent=50, holdout=0.0, rated=rated)
    )
    assert index.report["ratings"]["ratings"] == 8000 and index.num_agents > 80
    for agent in range(10):
        trained, out = held(index.open(agent))
        assert not trained & out
        shard = index.open(agent)
        assert shard.score_gap.min() >= 3 - 1e-6
    assert "each person's own items" in "\n".join(lines(index.report))
