"""Records to judgments: each format is recognised by its columns, and dirt is named."""

import json
import math

import pytest

from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.pairs import judgments, recognise
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


ALPACA = {"instruction": "Translate.", "input": "the cat", "chosen": "le chat", "rejected": "chat"}


@pytest.mark.parametrize("nothing", ["", None, math.nan])
def test_the_input_of_an_instruction_belongs_to_the_prompt(nothing):
    assert read(ALPACA) == ("strings", "plain", [("Translate.\nthe cat", "le chat", "chat")])
    bare = {**ALPACA, "input": nothing}
    assert read(bare, like=ALPACA)[2] == [("Translate.", "le chat", "chat")]
    # The first row need not have what others have.
    form = recognise([{**bare, "instruction": "Go."}, ALPACA], Columns())
    assert [form.read(row)[0].prompt for row in (bare, ALPACA)] == [
        "Translate.",
        "Translate.\nthe cat",
    ]
    del bare["input"]
    assert form.read(bare)[0].prompt == "Translate."
    judged = {"instruction": "i", "input": nothing, "a1": "x", "a2": "y", "label": 2}
    assert read(judged)[2] == [("i", "y", "x")]


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "record, before",
    [
        ({"system": "Be kind.", "question": "Hi?"}, [turn("system", "Be kind.")]),
        ({"system_prompt": "Be kind.", "prompt": [user("Hi?")]}, [turn("system", "Be kind.")]),
        ({"system": "S", "prompt": [turn("system", "S"), user("Hi?")]}, [turn("system", "S")]),
        ({"system": "S", "messages": [user("Hi?")]}, [turn("system", "S")]),
        ({"history": [["Ho", "Oh"]], "instruction": "Hi?"}, [user("Ho"), assistant("Oh")]),
        ({"history": [user("Ho")], "prompt": "Hi?"}, [user("Ho")]),
        (
            {"history": [["Ho", "Oh"]], "prompt": [turn("system", "S"), user("Hi?")]},
            [turn("system", "S"), user("Ho"), assistant("Oh")],
        ),
        (
            {"system": "S", "history": [["Ho", "Oh"]], "instruction": "Hi?", "input": ""},
            [turn("system", "S"), user("Ho"), assistant("Oh")],
        ),
    ],
)
def test_systems_and_histories_come_before_the_question(record, before):
    record = {**record, "chosen": "Yes", "rejected": "No"}
    _, prompt_format, ((prompt, chosen, rejected),) = read(record)
    assert (prompt_format, chosen, rejected) == ("messages", "Yes", "No")
    assert json.loads(prompt) == [*before, user("Hi?")]
    # Two answers and a label take their prompt from the same columns.
    del record["chosen"], record["rejected"]
    judged = {**record, "response_a": "No", "response_b": "Yes", "winner": "model_b"}
    if "messages" not in record:
        assert read(judged)[2] == [(prompt, "Yes", "No")]


def test_columns_of_system_and_history_say_so():
    record = {**STRINGS, "system": "S", "history": [["a", "b"]]}
    roles = recognise([record], Columns()).roles
    assert (roles["system"], roles["history"]) == (("system",), ("history",))
    empty = {**STRINGS, "system": "", "history": []}
    assert read(empty) == read(STRINGS)
    assert "system" not in recognise([empty], Columns()).roles
    named = {"tone": "S", "past": [["a", "b"]], **STRINGS}
    form = recognise([named], Columns(system="tone", history="past"))
    assert json.loads(form.read(named)[0].prompt)[:2] == [turn("system", "S"), user("a")]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"system": "T", "prompt": [turn("system", "S"), user("q")]}, "different system turns"),
        ({"system": 3}, "system is not text"),
        ({"history": [["a"]]}, "a turn of history is not [question, answer]"),
        ({"history": "before"}, "history is not a list of turns"),
        ({"prompt": None}, "no prompt"),
        ({"chosen": math.nan}, "no chosen"),
        ({"prompt": [user("  ")]}, "empty prompt"),
    ],
)
def test_odd_turns_before_the_question_are_named(change, reason):
    like = {**STRINGS, "system": "S", "history": [["a", "b"]]}
    (found,) = read({**like, **change}, like=like)[2]
    assert reason in found


@pytest.mark.parametrize(
    "filled, option", [({"system": "S"}, "system"), ({"history": [["a", "b"]]}, "history")]
)
def test_turns_that_the_first_rows_lack_are_not_lost(filled, option):
    (found,) = read({**STRINGS, **filled}, like={**STRINGS, option: None})[2]
    assert found == f"{option} is empty in the first rows and not here (name it: --{option})"
    columns = Columns(**{option: option})
    name, prompt_format, _ = read({**STRINGS, **filled}, columns, like={**STRINGS, option: None})
    assert (name, prompt_format) == ("messages", "messages")
    assert json.loads(recognise([{**STRINGS, option: None}], columns).read(STRINGS)[0].prompt) == [
        user("Tea?")
    ]


def test_a_text_beside_a_prompt_is_no_history():
    record = {**STRINGS, "history": "we met"}
    assert read(record) == read(STRINGS)
    assert "history" not in recognise([record], Columns()).roles


TALK = {
    "prompt": "Hi?",
    "chosen": [user("Hi?"), assistant("Yes\n")],
    "rejected": [user("Hi?"), assistant("it's \"No\"")],
}


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: json.dumps(value, indent=1)])
@pytest.mark.parametrize("names", [("chosen", "rejected"), ("prompt", "chosen", "rejected")])
def test_messages_written_as_text_are_messages(write, names):
    record = {**TALK, "prompt": [user("Hi?")]}
    record.update((name, write(record[name])) for name in names)
    name, _, ((prompt, chosen, rejected),) = read(record)
    assert (name, chosen, rejected) == ("messages", "Yes\n", "it's \"No\"")
    assert json.loads(prompt) == [user("Hi?")]


def test_a_prompt_of_messages_as_text_beside_plain_answers():
    prompt = json.dumps([turn("system", "S"), user("Q")])
    record = {"prompt": prompt, "chosen": "y", "rejected": "n"}
    ((prompt, chosen, rejected),) = read(record)[2]
    assert json.loads(prompt) == [turn("system", "S"), user("Q")]
    assert (chosen, rejected) == ("y", "n")


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'A'}]",
        "[{'role': 'user', 'content': __import__('os').getcwd()}]",
        '[{"role": "user", "content": "cut',
        "[{'role': " + "(" * 500,
        "[{'role': 'user', 'content': '" + "x" * (1 << 22) + "'}]",
    ],
)
def test_messages_as_text_that_cannot_be_read_are_named_and_never_run(text):
    (found,) = read({**TALK, "chosen": text}, like=TALK)[2]
    assert found == "chosen holds messages as text that is neither JSON nor a Python list"


def test_answers_that_are_json_themselves_stay_text():
    record = {"prompt": "As JSON?", "chosen": '{"name": "x"}', "rejected": "[1, 2]"}
    assert read(record) == ("strings", "plain", [("As JSON?", '{"name": "x"}', "[1, 2]")])


def test_parts_of_text_are_joined_and_roles_known_by_other_names():
    parts = [{"type": "text", "text": "a"}, {"text": "b", "image": None, "type": "text"}, "c"]
    record = {
        "prompt": [turn("developer", "S"), turn("Human", parts)],
        "chosen": turn("model", "y"),
        "rejected": turn("ASSISTANT", "n"),
    }
    ((prompt, chosen, rejected),) = read(record)[2]
    assert json.loads(prompt) == [turn("system", "S"), user("abc")]
    assert (chosen, rejected) == ("y", "n")


@pytest.mark.parametrize(
    "message, reason",
    [
        (turn("elf", "x"), "a message of prompt has an unknown role: 'elf'"),
        (turn("e" * 99, "x"), "unknown role: '" + "e" * 20 + "'"),
        (turn(["user"], "x"), "a message of prompt has no role"),
        ({"content": "x"}, "a message of prompt has no role"),
        (user([{"type": "image", "url": "u"}]), "holds more than text: 'image'"),
        (user([{"type": "text"}]), "a message of prompt is not text"),
        (user(None), "a message of prompt is not text"),
        ("text", "prompt is not a list of messages"),
    ],
)
def test_messages_that_are_none_are_named(message, reason):
    (found,) = read({**TALK, "prompt": [message]}, like={**TALK, "prompt": [user("x")]})[2]
    assert reason in found


def test_messages_beside_whole_dialogues_are_a_copy():
    record = {**TALK, "messages": TALK["chosen"]}
    del record["prompt"]
    assert json.loads(read(record)[2][0][0]) == [user("Hi?")]
    assert "prompt" not in recognise([record], Columns()).roles


def test_a_history_and_whole_dialogues_do_not_repeat_the_question():
    record = {**TALK, "prompt": [user("Hi?")], "history": [["a", "b"]]}
    assert json.loads(read(record)[2][0][0]) == [user("a"), assistant("b"), user("Hi?")]


@pytest.mark.parametrize(
    "change, what",
    [
        ({"chosen": 0, "rejected": 1}, r"chosen is not text \(a number, first in row 1\)"),
        ({"rejected": True}, r"rejected is not text \(true or false, first in row 1\)"),
        ({"prompt": 7.5}, r"prompt is not text \(a number, first in row 1\)"),
        ({"chosen": b"\xff"}, r"chosen is not text \(bytes that are not UTF-8, first in row 1\)"),
        ({"prompt": None}, r"no prompt \(first in row 1\)"),
        ({"prompt": math.nan}, r"no prompt \(first in row 1\)"),
    ],
)
def test_values_of_another_type_are_named_when_no_row_is_text(change, what):
    with pytest.raises(DataError, match=what):
        recognise([{**STRINGS, **change}] * 3, Columns())


def test_the_row_of_a_wrong_value_is_counted_with_those_that_are_no_rows():
    with pytest.raises(DataError, match="first in row 2"):
        recognise(["not an object", {**STRINGS, "chosen": 3}], Columns())


def test_bytes_that_are_text_are_text():
    record = {name: value.encode() for name, value in STRINGS.items()}
    assert read(record)[2] == [("Tea?", "Yes", "No")]


def test_one_text_for_question_and_answer_is_refused_with_the_reason():
    record = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    with pytest.raises(DataError, match="no .*Assistant:.* says where the answer begins") as error:
        recognise([record], Columns())
    assert "--prompt" in error.value.remedy


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": [user("q")], "completion": [assistant("a")], "label": False},
        {"messages": [user("q"), assistant("a")], "label": True},
        {"instruction": "i", "output": "o", "kto_tag": True},
    ],
)
def test_unpaired_rows_are_refused_with_what_to_do(record):
    with pytest.raises(DataError, match="a row holds one answer .* and whether it is") as error:
        recognise([record], Columns())
    assert "kto" in error.value.remedy and "chosen and rejected" in error.value.remedy


def test_rows_inside_one_object_are_pointed_at():
    with pytest.raises(DataError, match="seem to be in 'data'") as error:
        recognise([{"version": 1, "data": [STRINGS]}], Columns())
    assert "jq" in error.value.remedy


TWO = {"prompt": "p", "response1": "x", "response2": "y", "s1": 9, "s2": 4}


def scored(record, columns):
    form = recognise([record], columns)
    return [
        item if isinstance(item, str) else (item.chosen, item.score_chosen, item.score_rejected)
        for item in judgments(form, record, columns)
    ]


def test_scores_follow_the_winner():
    columns = Columns(score_chosen="s1", score_rejected="s2")
    assert scored({**TWO, "label": 1}, columns) == [("x", 9.0, 4.0)]
    assert scored({**TWO, "label": 2}, columns) == [("y", 4.0, 9.0)]
    votes = [["ann", "response2"], ["bob", "response1"], ["cem", "tie"]]
    both = [("y", 4.0, 9.0), ("x", 9.0, 4.0), "tie"]
    assert scored({**TWO, "votes": votes}, columns) == both
    people = {**TWO, "annotator1": 2, "annotator2": 1, "annotator3": 0}
    assert scored(people, columns) == both
    scale = Columns(score_chosen="s1", score_rejected="s2", label_scale=(-3.0, 3.0))
    assert scored({**TWO, "label": 1}, scale) == [("y", 4.0, 9.0)]
    assert scored({**TWO, "label": 2, "s1": "much"}, columns) == ["s1 is not a finite number"]
    assert scored({**TWO, "label": 2, "s1": math.nan}, columns) == ["s1 is not a finite number"]
    assert recognise([{**TWO, "label": 2}], columns).roles["scores"] == ("s1", "s2")


def test_scores_of_named_answers_stay_with_them():
    record = {**STRINGS, "s1": 9, "s2": 4}
    assert scored(record, Columns(score_chosen="s2", score_rejected="s1")) == [("Yes", 4.0, 9.0)]


@pytest.mark.parametrize(
    "names", [("score_chosen", "score_rejected"), ("chosen_features", "rejected_features")]
)
def test_columns_of_a_winner_that_only_the_label_names_are_refused(names):
    record = {**TWO, "label": 2, names[0]: [1.0], names[1]: [2.0]}
    with pytest.raises(DataError, match=f"{names[0]} and {names[1]} stand beside two answers"):
        recognise([record], Columns())


def test_one_column_of_scores_is_refused():
    with pytest.raises(DataError, match="one column of scores"):
        recognise([{**STRINGS, "s1": 1}], Columns(score_chosen="s1"))


@pytest.mark.parametrize(
    "labels, ends",
    [
        ([-3, -1, 0, 2], "-3,3"),
        ([1, -1], "-1,1"),
        ([1, 2, 5], "1,5"),
        (["0.25", "1"], "0.25,1"),
        ([-2.0, "?"], "-2,2"),
    ],
)
def test_scales_are_refused_until_named(labels, ends):
    sample = [{**TWO, "preference": label} for label in labels]
    with pytest.raises(DataError, match="preference says .* looks like a scale") as error:
        recognise(sample, Columns())
    assert f"--label-scale={ends}" in error.value.remedy
    assert recognise(sample, Columns(label_values=("1", "2"))).name == "labels"


@pytest.mark.parametrize(
    "scale, found",
    [
        ((-3.0, 3.0), ["x", "x", "tie", "y", "y"]),
        ((3.0, -3.0), ["y", "y", "tie", "x", "x"]),
        ((-math.inf, math.inf), ["x", "x", "tie", "y", "y"]),
        ((-2.0, 2.0), ["label not on the scale", "x", "tie", "y", "label not on the scale"]),
        ((-3.0, 1.0), ["x", "tie", "y", "y", "label not on the scale"]),
    ],
)
def test_a_named_scale_says_which_is_better(scale, found):
    rows = [{**TWO, "preference": label} for label in (-3, -1, 0, "1", 3.0)]
    form = recognise(rows, Columns(label_scale=scale))
    items = [form.read(row)[0] for row in rows]
    assert [item if isinstance(item, str) else item.chosen for item in items] == found
    assert form.read({**TWO, "preference": "good"}) == ["label not on the scale"]


@pytest.mark.parametrize(
    "user, name",
    [
        (None, None),
        (math.nan, None),
        ("", None),
        ("  ", None),
        (7, "7"),
        (7.0, "7"),
        (7.5, "7.5"),
        ("nan", "nan"),
        (b"ann", "ann"),
    ],
)
def test_missing_people_are_nobody(user, name):
    form = recognise([STRINGS], Columns())
    (item,) = judgments(form, {**STRINGS, "user": user}, Columns())
    assert item.user == name


def test_people_that_are_lists_are_named():
    form = recognise([STRINGS], Columns())
    assert judgments(form, {**STRINGS, "user": ["a"]}, Columns()) == ["user is not one value"]


def test_votes_of_nobody_have_no_user():
    record = {**TWO, "votes": [[None, 1], [math.nan, 2], ["ann", 1]]}
    form = recognise([record], Columns())
    assert [item.user for item in judgments(form, record, Columns())] == [None, None, "ann"]
