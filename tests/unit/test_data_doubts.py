"""What a sharding says it understood, and what it finds odd: warnings, errors under --strict."""

import json

import numpy as np
import pytest

from decdpo.cli import main
from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.reports.numbers import LARGEST
from decdpo.data.ingest.reports.survey import MARKERS
from decdpo.data.sharding import Plan, make_shards
from decdpo.errors import DataError

N = 40


def plain(k):
    """Return one of ``N`` rows in which nothing is odd."""
    longer, shorter = f"a long answer of number {k}", f"answer {k}"
    chosen, rejected = (longer, shorter) if k % 2 else (shorter, longer)
    return {"prompt": f"question {k}", "chosen": chosen, "rejected": rejected}


def voted(k):
    row = plain(k)
    return {"prompt": row["prompt"], "answer_a": f"x {k}", "answer_b": f"why {k}"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shard(tmp_path, rows, plan=None, name="s"):
    source = write(tmp_path / f"{name}.jsonl", rows)
    return make_shards([source], tmp_path / name, plan or Plan("iid", 2)).report


def changed(row=plain, every=1, **values):
    """Return N rows with some values replaced in each ``every``-th: constants or functions of k."""
    rows = []
    for k in range(N):
        new = {n: v(k) if callable(v) else v for n, v in values.items()} if k % every == 0 else {}
        rows.append({**row(k), **new})
    return rows


def kinds(report, warning=None):
    return {d["kind"] for d in report["doubts"] if warning is None or d["warning"] == warning}


def test_nothing_odd_is_found_in_plain_pairs(tmp_path):
    assert shard(tmp_path, changed(), Plan("iid", 2, strict=True))["doubts"] == []


ODD = {
    "one_prompt": changed(prompt="the same"),
    "one_answer": changed(rejected="I cannot say."),
    "same_words": changed(chosen=lambda k: f"Yes  {k}", rejected=lambda k: f"yes {k} "),
    "short_answer": changed(every=10, chosen="!"),
    "control": changed(every=10, prompt=lambda k: f"a\x07b {k}"),
    "garbled": changed(every=10, rejected=lambda k: f"itâ€™s Ã© {k}"),
    "entities": changed(every=10, chosen=lambda k: f"this &amp; that {k}"),
    "marked": changed(every=10, prompt=lambda k: f"<s>[INST] question {k} [/INST]"),
    "next_turn": changed(every=10, chosen=lambda k: f"sure {k}\n\nHuman: and"),
    "structure": changed(chosen=lambda k: json.dumps([{"role": "assistant", "content": f"{k}"}])),
    "unused_column": changed(label=1),
    "duplicate": [*changed(), *changed()],
    "contradicting": [
        *changed(),
        *changed(chosen=lambda k: plain(k)["rejected"], rejected=lambda k: plain(k)["chosen"]),
    ],
    "one_sided": changed(voted, winner="a"),
    "score_below": changed(score_chosen=1, score_rejected=lambda k: k % 3),
    "score_equal": changed(score_chosen=1, score_rejected=1),
    "weights_wide": changed(weight=lambda k: 10.0 ** (k % 5)),
    "no_user": changed(every=2, user="ann"),
    "leak": [*changed(), *changed(prompt=lambda k: f"also {k}")],
}


@pytest.mark.parametrize("kind", ODD)
def test_an_oddity_is_a_warning_and_an_error_under_strict(tmp_path, kind):
    report = shard(tmp_path, ODD[kind])
    assert kind in kinds(report, warning=True), report["doubts"]
    with pytest.raises(DataError, match="--strict: ") as error:
        shard(tmp_path, ODD[kind], Plan("iid", 2, strict=True), "t")
    what = next(doubt["what"] for doubt in report["doubts"] if doubt["kind"] == kind)
    assert what in str(error.value) and error.value.remedy


NOTES = {
    "short_answer": changed(chosen=lambda k: f"{k}", rejected=lambda k: f"{k + 1}"),
    "few_prompts": [
        {**plain(k), "prompt": f"question {k % 2}"} for k in range(120)
    ],
    "length": changed(chosen=lambda k: f"a long answer {k}", rejected=lambda k: f"no {k}"),
    "weights_equal": changed(weight=2.0),
    "control": [plain(k) for k in range(200)] + [{**plain(200), "prompt": "a\x00b"}],
}


@pytest.mark.parametrize("kind", NOTES)
def test_what_is_only_worth_knowing_passes_strict(tmp_path, kind):
    report = shard(tmp_path, NOTES[kind], Plan("iid", 2, strict=True))
    assert kind in kinds(report, warning=False)


def test_markers_are_counted_by_name(tmp_path):
    report = shard(tmp_path, ODD["marked"])
    assert report["markers"] == {"<s>": 4, "[INST]": 4, "[/INST]": 4}
    assert report["oddities"]["marked"] == {"pairs": 4, "rows": ["1", "11", "21", "31"]}


def test_answers_that_are_choices_are_no_oddity(tmp_path):
    rows = changed(chosen=lambda k: "AB"[k % 2], rejected=lambda k: "BA"[k % 2])
    assert shard(tmp_path, rows, Plan("iid", 2, strict=True))["doubts"] == []


def test_the_same_pair_judged_by_two_users_is_no_duplicate(tmp_path):
    rows = [*changed(user="ann"), *changed(user="ben")]
    plan = Plan("by:user", group="prompt", strict=True)
    assert shard(tmp_path, rows, plan)["doubts"] == []


def test_a_prompt_that_all_answers_repeat_is_cut_off_and_said(tmp_path):
    def repeated(k):
        row = plain(k)
        return {n: row["prompt"] + ("" if n == "prompt" else ": " + row[n]) for n in row}

    index = make_shards(
        [write(tmp_path / "a", [repeated(k) for k in range(N)])], tmp_path / "s", Plan("iid", 1)
    )
    found = {(p.prompt, p.chosen, p.rejected) for p in index.open(0).pairs(range(N))}
    assert found == {
        (plain(k)["prompt"], ": " + plain(k)["chosen"], ": " + plain(k)["rejected"])
        for k in range(N)
    }
    assert index.report["sources"][0]["prompt_cut_off"] == N
    assert "prompt_cut_off" in kinds(index.report, warning=True)


def test_a_prompt_that_some_answers_repeat_is_kept_and_said(tmp_path):
    rows = changed()
    rows[3]["chosen"], rows[3]["rejected"] = "question 3 yes", "question 3 no"
    report = shard(tmp_path, rows)
    assert report["sources"][0]["prompt_cut_off"] == 0
    assert report["oddities"]["repeated_prompt"] == {"pairs": 1, "rows": ["4"]}


def test_labels_are_counted_with_their_meaning(tmp_path):
    rows = changed(voted, winner=lambda k: ["A", "b", "tie", None, "?"][k % 5])
    labels = shard(tmp_path, rows)["labels"]
    assert {(x["label"], x["means"]): x["count"] for x in labels} == {
        ("A", "answer_a"): 8,
        ("b", "answer_b"): 8,
        ("tie", "tie"): 8,
        ("", "no label"): 8,
        ("?", "label not understood"): 8,
    }


def test_endlessly_many_labels_take_no_memory(tmp_path):
    labels = shard(tmp_path, [
        {**voted(k), "winner": ("a", f"unknown {k}")[k % 2]} for k in range(400)])["labels"]
    assert len(labels) == 51 and sum(x["count"] for x in labels) == 400


def test_scores_weights_users_and_texts_are_described(tmp_path):
    rows = changed(
        score_chosen=lambda k: k, score_rejected=0, weight=lambda k: 1 + k % 2, user=lambda k: k % 3
    )
    report = shard(tmp_path, rows)
    assert report["scores"] == {
        "pairs": 40,
        "chosen": {"min": 0, "median": 19.5, "max": 39},
        "rejected": {"min": 0, "median": 0, "max": 0},
        "chosen_below": 0,
        "equal": 1,
    }
    assert report["weights"] == {"pairs": 40, "min": 1, "median": 1.5, "max": 2,
                                 "like_equal_pairs": 36.0}
    assert report["users"] == {"distinct": 3, "without": 0}
    assert report["texts"] == {
        "distinct_prompts": 40,
        "distinct_chosen": 40,
        "distinct_rejected": 40,
        "distinct_answers": 80,
    }


def test_features_without_texts_name_the_policy_that_sees_them(tmp_path, capsys):
    rows = [{"chosen_features": [k, 1.0], "rejected_features": [0, 1.0]} for k in range(N)]
    source = write(tmp_path / "a", rows)
    assert main(["shard", str(source), "--agents", "2", "--out", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    assert 'no texts: train with policy.features = "columns"' in said
    assert "1 of 40 pairs have answers with equal features" in said


def test_every_marker_of_a_template_is_found(tmp_path):
    rows = [{**plain(k), "prompt": f"{k} {m} and {m}"} for k, m in enumerate(MARKERS)]
    assert shard(tmp_path, rows)["markers"] == dict.fromkeys(MARKERS, 1)


# Leaks


def leaking(k):
    """Return rows in which every question is asked five times, with answers of its own."""
    chosen, rejected = f"yes, that is number {k // 5}", f"no, that is number {k}"
    return {"prompt": f"question {k // 5}", "chosen": chosen, "rejected": rejected}


def test_leaks_are_counted_and_whole_prompts_mend_them(tmp_path):
    rows = [leaking(k) for k in range(200)]
    report = shard(tmp_path, rows, Plan("iid", 2, holdout=0.2))
    leaks = report["leaks"]
    assert leaks["held_out_pairs"] == 40
    assert leaks["prompts"]["trained_on"] > 0.9 * leaks["prompts"]["held_out"] > 10
    assert leaks["pairs_with_answer"] == leaks["pairs_with_prompt"] > 30
    assert leaks["pairs"] == {"held_out": 40, "trained_on": 0}
    (doubt,) = [d for d in report["doubts"] if d["kind"] == "leak"]
    assert "--group prompt" in doubt["remedy"]
    mended = shard(tmp_path, rows, Plan("iid", 2, holdout=0.2, group="prompt"), "t")
    assert mended["held_out_by"] == "prompt" and "leak" not in kinds(mended)
    for kind in ("pairs", "prompts", "answers"):
        assert mended["leaks"][kind]["held_out"] > 0 == mended["leaks"][kind]["trained_on"]


def test_whole_prompts_are_those_that_were_read_whatever_their_columns(tmp_path):
    rows = [
        {"instruction": f"do {k // 8}", "input": f"with {k // 4}", "response1": f"a {k}",
         "response2": f"b {k}", "label": 1 + k % 2, "prompt": None}
        for k in range(80)
    ]
    for row in rows:
        del row["prompt"]
    report = shard(tmp_path, rows, Plan("iid", 2, holdout=0.2, group="prompt"))
    assert report["leaks"]["prompts"] == {"held_out": 4, "trained_on": 0}


def test_whole_prompts_are_held_out_alike_in_every_process(tmp_path):
    rows = [leaking(k) for k in range(200)]
    plan = Plan("iid", 2, group="prompt")
    digests = [
        make_shards([write(tmp_path / "a", rows)], tmp_path / f"s{k}", plan)
        for k in range(2)
    ]
    assert digests[0].digest == digests[1].digest


def test_answers_under_several_prompts_need_another_column(tmp_path):
    rows = [
        {
            "prompt": f"question {k}",
            "chosen": f"yes, number {k % 15} of all",
            "rejected": f"no, {k % 15}",
            "topic": f"{k % 15}",
        }
        for k in range(200)
    ]
    report = shard(tmp_path, rows, Plan("iid", 2))
    (doubt,) = [d for d in report["doubts"] if d["kind"] == "leak"]
    assert "20 have an answer" in doubt["what"] and "(of topic)" in doubt["remedy"]
    assert "leak" not in kinds(shard(tmp_path, rows, Plan("iid", 2, group="topic"), "t"))


# Numbers


@pytest.mark.parametrize("column", ["weight", "score_chosen"])
def test_numbers_that_float32_cannot_hold_are_refused(tmp_path, column):
    rows = changed(score_chosen=0.0, score_rejected=0.0, weight=1.0)
    rows[6][column] = 1e300
    with pytest.raises(DataError, match=rf"{column} is 1e\+300 in source row 7") as error:
        shard(tmp_path, rows)
    assert "scale" in error.value.remedy
    rows[6][column] = LARGEST
    assert shard(tmp_path, rows)["pairs"] == N


def test_features_that_float32_cannot_hold_are_refused(tmp_path):
    rows = [{"chosen_features": [k, 1.0], "rejected_features": [0, -2.0]} for k in range(9)]
    rows[4]["rejected_features"][1] = -1e308
    with pytest.raises(DataError, match=r"rejected_features\[1\] is -1e\+308 in source row 5"):
        shard(tmp_path, rows)


# Agents


def test_agents_with_almost_nothing_are_counted(tmp_path):
    rows = changed(user=lambda k: "ann" if k < 37 else f"u{k}")
    report = shard(tmp_path, rows, Plan("by:user"))
    assert {"few_training_pairs", "no_held_out_pairs"} <= kinds(report)


def test_many_agents_are_listed_in_part(tmp_path, capsys):
    source = write(tmp_path / "a", changed())
    assert main(["shard", str(source), "--agents", "20", "--out", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    assert "8 more (in index.json); training pairs of all: 1 to 1, median 1" in said


# What is printed


def test_the_report_fits_100_columns_and_shows_a_pair(tmp_path, capsys):
    rows = changed(prompt=lambda k: f"  word{k} " * 200, user="x" * 300, topic="t")
    source = write(tmp_path / "a", rows)
    options = ["--agents", "2", "--out", str(tmp_path / "s"), "--show", "3"]
    assert main(["shard", str(source), *options]) == 0
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    assert max(map(len, said.splitlines())) <= 100
    assert "3 pairs as read" in said and '"  word0   word0' in said and "row 40" in said
    assert "columns     prompt: prompt; chosen: chosen; rejected: rejected; user: user" in said
    assert "not used    topic" in said


def test_texts_stay_out_of_the_index_that_everybody_may_read(tmp_path, capsys):
    source = write(tmp_path / "a", changed(rejected=lambda k: f"secret {k}"))
    options = ["--agents", "2", "--out", str(tmp_path / "s"), "--json", "--show", "2"]
    assert main(["shard", str(source), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [pair["rejected"] for pair in report["shown"]] == ["secret 0", "secret 39"]
    assert report["doubts"] == [] and report["sources"][0]["columns_unused"] == []
    assert "secret" not in (tmp_path / "s" / "index.json").read_text()


def test_messages_are_shown_one_by_one(tmp_path, capsys):
    prompt = [{"role": "system", "content": "Be\nkind"}, {"role": "user", "content": "hi"}]
    rows = changed(prompt=prompt)
    source = write(tmp_path / "a", rows)
    assert main(["shard", str(source), "--agents", "2", "--out", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    assert '   system     "Be\\nkind"\n   user       "hi"\n  chosen      "answer 0"' in said


def test_a_number_of_pairs_below_zero_is_refused(tmp_path, capsys):
    assert main(["shard", "x", "--agents", "2", "--out", str(tmp_path / "s"), "--show=-1"]) == 2
    assert "--show -1" in capsys.readouterr().err


def test_pairs_in_large_files_are_surveyed_part_by_part(tmp_path):
    """The parts that are read at a time must not shift what belongs to a pair."""
    filler = "word " * 60_000
    rows = changed(prompt=lambda k: f"question {k} {filler}")
    rows[33]["chosen"] = "&amp; the 34th"
    report = shard(tmp_path, rows, Plan("iid", 2, columns=Columns(prompt=("prompt",))))
    assert report["oddities"]["entities"]["rows"] == ["34"]
    assert report["texts"]["distinct_prompts"] == N
    assert np.isclose(report["leaks"]["held_out_pairs"], 4)
