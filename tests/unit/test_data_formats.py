"""Records to judgments: each format is recognised by its columns, and dirt is named."""

import json
import math

import pytest

from decdpo.data.ingest.columns import Columns
from decdpo.data.ingest.formats import judgments, recognise
from decdpo.errors import DataError


def read(record, columns=Columns(), like=None):
    """Return (format, prompt format, what the record says) under the format of ``like``."""
    form = recognise([record if like is None else like], columns)
    found = [
        item if isinstance(item, str) else (item.prompt, item.chosen, item.rejected)
        for item in judgments(form, record, columns)
    ]
    return form.name, form.prompt_format, found


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


HH = {
    "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why\n\nAssistant: because",
    "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why\n\nAssistant: no",
}
STRINGS = {"prompt": "Tea?", "chosen": "Yes", "rejected": "No"}


def test_transcripts_are_split_after_the_last_assistant():
    prompt = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why\n\nAssistant:"
    assert read(HH) == ("hh", "hh", [(prompt, " because", " no")])


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"rejected": "\n\nHuman: ha\n\nAssistant: no"}, "prompts differ"),
        ({"chosen": HH["chosen"].replace(" because", "")}, "empty answer"),
        ({"chosen": HH["rejected"]}, "equal answers"),
        ({"chosen": "\n\nHuman: hi"}, "no Assistant turn in chosen"),
        ({"chosen": None}, "no chosen"),
        ({"rejected": True}, "rejected is not text"),
        ({"chosen": HH["chosen"] + "\ud800"}, "not valid Unicode"),
    ],
)
def test_odd_transcripts_are_named(change, reason):
    assert read({**HH, **change}, like=HH)[2] == [reason]


def test_strings():
    assert read(STRINGS) == ("strings", "plain", [("Tea?", "Yes", "No")])
    assert read({**STRINGS, "prompt": "  "}, like=STRINGS)[2] == ["empty prompt"]


def test_columns_may_be_named():
    record = {"q": "Tea?", "more": "Now?", "good": "Yes", "bad": "No", "who": 7, "w": "0.5"}
    columns = Columns(("q", "more"), "good", "bad", user="who", weight="w")
    assert read(record, columns) == ("strings", "plain", [("Tea?\nNow?", "Yes", "No")])
    (item,) = judgments(recognise([record], columns), record, columns)
    assert (item.user, item.weight) == ("7", 0.5)


def test_a_misspelt_column_is_refused():
    with pytest.raises(DataError, match="no column 'usr'") as error:
        recognise([STRINGS], Columns(user="usr"))
    assert "prompt, chosen, rejected" in error.value.remedy


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [user("Hi?")], "chosen": [assistant("Yes")], "rejected": [assistant("No")]},
        {"prompt": "Hi?", "chosen": [assistant("Yes")], "rejected": [assistant("No")]},
        {"chosen": [user("Hi?"), assistant("Yes")], "rejected": [user("Hi?"), assistant("No")]},
        {
            "prompt": "Hi?",
            "chosen": [user("Hi?"), assistant("Yes")],
            "rejected": [user("Hi?"), assistant("No")],
        },
        {
            "prompt": [user("Hi?")],
            "chosen": [user("Hi?"), assistant("Yes")],
            "rejected": [user("Hi?"), assistant("No")],
        },
        {"prompt": [user("Hi?")], "chosen": "Yes", "rejected": "No"},
        {"prompt": [user("Hi?")], "chosen": assistant("Yes"), "rejected": assistant("No")},
    ],
)
def test_messages_in_all_their_shapes(record):
    name, prompt_format, ((prompt, chosen, rejected),) = read(record)
    assert (name, prompt_format) == ("messages", "messages")
    assert json.loads(prompt) == [user("Hi?")]
    assert (chosen, rejected) == ("Yes", "No")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"rejected": [user("Ho?"), assistant("No")]}, "prompts differ"),
        ({"chosen": [user("Hi?")]}, "chosen does not end with an assistant's message"),
        ({"chosen": []}, "chosen does not end with an assistant's message"),
        ({"chosen": [user("Hi?"), {"role": "elf", "content": "x"}]}, "unknown role"),
        ({"chosen": [user("Hi?"), {"role": "assistant", "content": 3}]}, "is not text"),
        ({"chosen": 5}, "not a list of messages"),
        ({"chosen": [assistant("Y")], "rejected": [assistant("N")]}, "empty prompt"),
    ],
)
def test_odd_messages_are_named(change, reason):
    like = {"chosen": [user("Hi?"), assistant("Yes")], "rejected": [user("Hi?"), assistant("No")]}
    (found,) = read({**like, **change}, like=like)[2]
    assert reason in found


def test_sharegpt():
    record = {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "Hi?"}],
        "chosen": {"from": "gpt", "value": "Yes"},
        "rejected": {"from": "gpt", "value": "No"},
    }
    name, prompt_format, ((prompt, chosen, rejected),) = read(record)
    assert (name, prompt_format, chosen, rejected) == ("sharegpt", "messages", "Yes", "No")
    assert json.loads(prompt) == [{"role": "system", "content": "Be kind."}, user("Hi?")]


def test_persona():
    record = {
        "question": "Do you?",
        "statement": "s",
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
    }
    assert read(record) == ("persona", "plain", [("Do you?", " Yes", " No")])


def test_votes_are_one_judgment_each():
    record = {
        "debate": "Ban it",
        "stance": "yes",
        "a1": "one",
        "a2": "two",
        "votes": [["w1", "a1"], ["w2", "a2"], ["w3", "equal"], ["w4", "?"]],
        "gold": "a2",
    }
    form = recognise([record], Columns())
    first, second, *rest = judgments(form, record, Columns())
    assert (first.prompt, first.chosen, first.user, first.second) == (
        "Ban it: yes",
        "one",
        "w1",
        False,
    )
    assert (second.chosen, second.rejected, second.user, second.second) == (
        "two",
        "one",
        "w2",
        True,
    )
    assert rest == ["tie", "label not understood"]
    assert read(record, Columns(label=("gold",)))[2] == [("Ban it: yes", "two", "one")]
    assert read({**record, "gold": None}, Columns(label=("gold",)))[2] == ["no label"]
    assert read({**record, "votes": []}, like=record)[2] == ["no votes"]
    assert read({**record, "a1": "two"}, like=record)[2][:2] == ["equal answers"] * 2


def test_annotators_are_people():
    record = {
        "instruction": "Sum",
        "input": "1 1",
        "response1": "2",
        "response2": "3",
        "annotator1": 1,
        "annotator2": 2,
        "annotator3": 0,
    }
    form = recognise([record], Columns())
    first, second, third = judgments(form, record, Columns())
    assert (first.prompt, first.chosen, first.user) == ("Sum\n1 1", "2", "annotator1")
    assert (second.chosen, second.user, third) == ("3", "annotator2", "tie")
    assert read({**record, "input": ""}, like=record)[2][0][0] == "Sum"
    assert read({**record, "response2": True}, like=record)[2] == ["response2 is not text"] * 3


@pytest.mark.parametrize(
    "label, chosen",
    [(1, "x"), ("1", "x"), (1.0, "x"), ("2.0", "y"), ("A", "x"), ("model_b", "y"), ("a", "x"),
     ("answer2", "y"), ("tie", "tie"), (0, "tie"), ("", "no label"), (True, "label not understood"),
     ("x5", "label not understood"), (math.nan, "no label")],
)  # fmt: skip
def test_labels_as_people_write_them(label, chosen):
    record = {"prompt": "p", "answer1": "x", "answer2": "y", "label": label}
    (found,) = read(record)[2]
    assert (found if isinstance(found, str) else found[1]) == chosen


def test_zero_and_one_alone_are_refused_since_files_differ_in_what_they_mean():
    record = {"prompt": "p", "answer1": "x", "answer2": "y"}
    sample = [{**record, "label": label} for label in (1, 0.0, None, "1", "")]
    with pytest.raises(DataError, match="label says 0 and 1") as error:
        recognise(sample, Columns())
    assert "--label-values 0,1 or 1,0, or 1,2" in error.value.remedy
    for values, chosen in ((("0", "1"), "y"), (("1", "0"), "x"), (("1", "2"), "x")):
        form = recognise(sample, Columns(label_values=values))
        assert form.read(sample[0])[0].chosen == chosen
    assert recognise([*sample, {**record, "label": 2}], Columns()).name == "labels"
    assert recognise(sample[:1], Columns()).name == "labels"
    votes = {**record, "votes": [["ann", 0], ["bob", 1]]}
    with pytest.raises(DataError, match="votes says 0 and 1"):
        recognise([{"prompt": "p"}, {**votes, "votes": 3}, votes], Columns())


def test_label_values_may_be_named():
    record = {"prompt": "p", "left": "x", "right": "y", "winner": "0"}
    columns = Columns(answers=("left", "right"), label=("winner",), label_values=("0", "1"))
    assert read(record, columns)[2] == [("p", "x", "y")]
    assert read({**record, "winner": 1}, columns)[2] == [("p", "y", "x")]
    assert read({**record, "winner": 2}, columns)[2] == ["label not understood"]


def test_shp_scores_follow_the_answers():
    record = {
        "history": "h",
        "human_ref_A": "a",
        "human_ref_B": "b",
        "labels": 0,
        "score_A": 3,
        "score_B": 9,
    }
    form = recognise([record], Columns())
    (item,) = judgments(form, record, Columns())
    assert form.name == "shp"
    assert (item.prompt, item.chosen, item.rejected) == ("h", "b", "a")
    assert (item.score_chosen, item.score_rejected) == (9.0, 3.0)
    (other,) = judgments(form, {**record, "labels": 1}, Columns())
    assert (other.chosen, other.score_chosen) == ("a", 3.0)
    assert judgments(form, {**record, "score_A": "x"}, Columns()) == [
        "score_A is not a finite number"
    ]


def test_scores_weights_and_features_ride_along():
    record = {
        **STRINGS,
        "score_chosen": 2,
        "score_rejected": "0.5",
        "weight": 3,
        "user": "ann",
        "chosen_features": [1, 2],
        "rejected_features": [0, 4.5],
    }
    form = recognise([record], Columns())
    (item,) = judgments(form, record, Columns())
    assert (item.score_chosen, item.score_rejected, item.weight) == (2.0, 0.5, 3.0)
    assert (item.user, item.chosen_features, item.rejected_features) == ("ann", [1, 2], [0, 4.5])
    for change, reason in [
        ({"score_chosen": None}, "score_chosen is not a finite number"),
        ({"weight": -1}, "weight is not positive"),
        ({"weight": 10**400}, "weight is not a finite number"),
        ({"user": "\ud800"}, "user is not valid Unicode"),
        ({"chosen_features": [1, float("nan")]}, "chosen_features is not a finite number"),
        ({"chosen_features": [1]}, "features of different lengths"),
    ]:
        assert judgments(form, {**record, **change}, Columns()) == [reason]


def test_features_need_no_text():
    record = {"chosen_features": [1.0], "rejected_features": [2.0]}
    assert read(record) == ("features", "plain", [("", "", "")])


def test_dirt_in_the_first_record_does_not_hide_the_format():
    assert recognise([{"chosen": None, "rejected": 3}, STRINGS], Columns()).name == "strings"


@pytest.mark.parametrize(
    "record", [{"a": 1}, {"a1": "x", "a2": "y", "label": 1}, {}]
)
def test_unknown_columns_are_listed(record):
    with pytest.raises(DataError, match="no known preference format") as error:
        recognise([record], Columns())
    assert "--prompt" in error.value.remedy


@pytest.mark.parametrize(
    "record, roles",
    [
        (
            {**STRINGS, "user": "ann", "weight": 1, "colour": "red"},
            {
                "prompt": ("prompt",),
                "chosen": ("chosen",),
                "rejected": ("rejected",),
                "user": ("user",),
                "weight": ("weight",),
            },
        ),
        (HH, {"chosen": ("chosen",), "rejected": ("rejected",)}),
        (
            {"instruction": "i", "input": "", "response1": "x", "response2": "y", "label": 2},
            {
                "prompt": ("instruction", "input"),
                "answers": ("response1", "response2"),
                "label": ("label",),
            },
        ),
        (
            {"chosen_features": [1.0], "rejected_features": [2.0], "score_chosen": 1},
            {"features": ("chosen_features", "rejected_features")},
        ),
    ],
)
def test_a_format_says_what_its_columns_are_used_for(record, roles):
    assert recognise([record], Columns()).roles == roles
