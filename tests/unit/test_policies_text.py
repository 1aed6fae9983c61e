"""What becomes of pairs on their way to tokens, and what is said of it."""

import json

import numpy as np
import pytest

from decdpo.data.shard import Pair
from decdpo.errors import DataError, PolicyError
from decdpo.policies.encoded import Tally, summed
from decdpo.policies.lm import hub
from decdpo.policies.lm.foreign import foreign
from decdpo.policies.lm.text.speller import Speller, TextRules
from decdpo.policies.tokens import tokenize

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")


def read(folder, pairs, prompt_format="plain", max_length=256, **rules):
    """Tokenize and decode every part; returns the texts and the counts by their first words."""
    tokenizer = hub.load_tokenizer(folder, allow_hub=False)
    speller = Speller(tokenizer, TextRules(**rules))
    tokens = tokenize(pairs, speller, prompt_format, max_length)
    texts = [tuple(tokenizer.decode(p) for p in tokens.parts(i)) for i in range(len(pairs))]
    return texts, {tally.what: (tally.count, tally.total) for tally in summed(tokens.tallies)}


def count(counts, words):
    """Return the count whose sentence holds ``words``; (0, 0) if there is none."""
    return next((value for what, value in counts.items() if words in what), (0, 0))


def chat(*turns):
    return json.dumps([{"role": role, "content": content} for role, content in turns])


def test_plain_pairs_meet_nothing_worth_a_word(make_model):
    texts, counts = read(make_model(), [Pair("Is it?", " yes", " no")])
    assert texts == [("<s>Is it?", " yes</s>", " no</s>")] and counts == {}


@pytest.mark.parametrize("prompt", ["<s>[INST] hi [/INST]", "<s>"])
def test_text_that_brings_its_beginning_gets_no_second_one(make_model, prompt):
    texts, counts = read(make_model(), [Pair(prompt, " yes", " no"), Pair("hi", " yes", " no")])
    assert texts == [(prompt, " yes</s>", " no</s>"), ("<s>hi", " yes</s>", " no</s>")]
    assert count(counts, "hold '<s>' already") == (1, 2)


def test_a_beginning_inside_a_prompt_stays(make_model):
    texts, counts = read(make_model(), [Pair("a <s> b", " yes", " no")])
    assert texts[0][0] == "<s>a <s> b" and not counts


@pytest.mark.parametrize(
    "pair",
    [
        Pair("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "yes", "no"),
        Pair("<s>hi", "yes", "no"),
        Pair("hi", "yes<|im_end|>", "no"),
    ],
)
def test_text_that_is_templated_already_is_counted(make_model, pair):
    _, counts = read(make_model(template="chatml"), [pair, Pair("hi", "yes", "no")])
    assert count(counts, "the template was put around them again") == (1, 2)
    texts, counts = read(make_model(template="chatml"), [pair], chat_template="none")
    assert "assistant\n<|im_start|>" not in texts[0][0] and not count(counts, "again")[0] * (
        pair.prompt[:3] != "<s>"
    )


def test_a_template_whose_end_is_not_the_tokenizers_is_counted_and_can_be_chosen(make_model):
    folder, pair = make_model(template="chatml"), Pair("hi", "yes", "no")
    texts, counts = read(folder, [pair])
    assert texts[0][1:] == ("yes<|im_end|>\n</s>", "no<|im_end|>\n</s>")
    assert count(counts, "end twice") == (2, 2)
    texts, counts = read(folder, [pair], eos="<|im_end|>")
    assert texts[0][1:] == ("yes<|im_end|>", "no<|im_end|>") and not counts
    texts, counts = read(folder, [pair], eos="template")
    assert texts[0][1:] == ("yes<|im_end|>\n", "no<|im_end|>\n") and not counts


def test_text_with_an_end_of_another_model_is_counted(make_model):
    _, counts = read(make_model(), [Pair("hi", " yes<|im_end|>", " no")])
    assert count(counts, "end twice") == (1, 2)


def test_a_template_that_ends_with_the_tokenizers_end_has_one(make_model):
    texts, counts = read(make_model(template="refusing"), [Pair("hi", "yes", "no")])
    assert texts[0] == ("<s>[user] hi</s>[assistant] ", "yes</s>", "no</s>") and not counts


def test_a_template_that_rewrites_turns_is_counted(make_model):
    folder = make_model(template="rewriting")
    texts, counts = read(folder, [Pair("hi", "yes", "no")])
    assert texts[0][1:] == ("yes</s>", "no</s>")
    assert count(counts, "rewrites earlier turns") == (2, 2) and not count(counts, "twice")[0]
    texts, _ = read(folder, [Pair("hi", "yes", "no")], eos="template")
    assert texts[0][1:] == ("yes<|im_end|>", "no<|im_end|>")


def test_prompts_that_are_no_token_prefix_are_counted(make_model):
    folder = make_model(merges=(("\u0120", "y"),))
    texts, counts = read(folder, [Pair("it ", "yes", "no"), Pair("it", " yes", " no")])
    assert texts[0] == ("<s>it ", "yes</s>", "no</s>")
    assert count(counts, "no prefix") == (1, 4)


def test_what_follows_an_end_inside_an_answer_is_counted(make_model):
    texts, counts = read(make_model(), [Pair("hi", " yes</s> and more", " no</s> ")])
    assert texts[0][1:] == (" yes</s>", " no</s>")
    assert count(counts, "what follows was dropped") == (1, 2)


def test_empty_answers_are_counted(make_model):
    _, counts = read(make_model(), [Pair("hi", "", " no")])
    assert count(counts, "are empty") == (1, 2)


def test_the_line_break_is_counted_and_can_be_left_out(make_model):
    pair = Pair("hi", "yes", " no")
    texts, counts = read(make_model(), [pair])
    assert texts[0][1:] == ("\nyes</s>", " no</s>")
    assert count(counts, "which TRL does not add") == (1, 2)
    texts, counts = read(make_model(), [pair], line_break=False)
    assert texts[0] == ("<s>hi", "yes</s>", " no</s>") and not counts


def test_equal_answers_are_counted_also_those_that_a_cut_makes_equal(make_model):
    pairs = [Pair("a", " yes", " yes"), Pair("a", " yes", " no"), Pair("a", " b" * 9, " b" * 8)]
    _, counts = read(make_model(), pairs, max_length=12)
    assert count(counts, "equal tokens: they teach nothing") == (2, 3)
    assert count(counts, "cut at their end by max_length = 12") == (2, 6)
    _, counts = read(make_model(template="chatml"), [Pair("a", "yes", "yes ")])
    assert count(counts, "teach nothing") == (1, 1)


@pytest.mark.parametrize(
    "turns, says, remedy",
    [
        ((("system", "s"), ("user", "q")), "System role not supported", "first user turn"),
        ((("user", "q"), ("user", "q")), "Roles must alternate", "alternate between"),
        ((("system", "s"), ("user", "q"), ("user", "r")), "System role", "alternate between"),
    ],
)
def test_a_refusal_of_the_template_names_row_cause_and_remedy(make_model, turns, says, remedy):
    good = Pair(chat(("user", "q")), "yes", "no")
    pairs = [good, Pair(chat(*turns), "yes", "no"), good, Pair(chat(*turns), "yes", "no")]
    with pytest.raises(PolicyError) as caught:
        read(make_model(template="refusing"), pairs, "messages")
    assert "refuses source row 2 (2 of 4 pairs)" in caught.value.what
    assert says in caught.value.what and remedy in caught.value.remedy


def test_a_broken_template_is_named(make_model):
    with pytest.raises(PolicyError, match="source row 1 .1 of 1 pairs.") as caught:
        read(make_model(template="broken"), [Pair("hi", "yes", "no")])
    assert "mend the chat template" in caught.value.remedy


@pytest.mark.parametrize(
    "prompt",
    [
        "[1]", '{"a": 1}', '[{"role": "user"}]', '[{"role": "user", "content": null}]', "[", "7",
        '["role"]', '[{"role": 1, "content": "a"}]', "[" * 100_000, "9" * 5000, "null", '"role"',
        '[{"role": "user", "content": "\\ud800"}]', '[[["role", "user"]]]', "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("template", [None, "chatml"])
def test_messages_that_are_none_are_named(make_model, prompt, template):
    with pytest.raises(DataError, match="source row 1: the prompt is no list of messages"):
        read(make_model(template=template), [Pair(prompt, "yes", "no")], "messages")


class Panicking:
    """A tokenizer that cannot take one word."""

    class Panic(BaseException):
        """What the Rust tokenizers raise."""

    def __init__(self, tokenizer, fault):
        self._tokenizer, self._fault = tokenizer, fault

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, texts, **more):
        if any("bad" in text for text in texts):
            raise self._fault
        return self._tokenizer(texts, **more)


@pytest.mark.parametrize("fault", [TypeError("what?"), Panicking.Panic("index out of bounds")])
def test_what_a_tokenizer_raises_names_the_source_row(make_model, fault):
    tokenizer = Panicking(hub.load_tokenizer(make_model(), False), fault)
    pairs = [Pair("good", " yes", " no"), Pair("fine", " bad", " no")]
    with pytest.raises(PolicyError, match=f"agent 3: the tokenizer fails at source row 8: {fault}"):
        tokenize(pairs, tokenizer, "plain", 64, source_rows=[7, 8], where="agent 3: ")


def test_interrupts_and_lack_of_memory_are_not_foreign():
    for error in (KeyboardInterrupt(), MemoryError(), DataError("x")):
        with pytest.raises(type(error)):
            with foreign("what", "remedy"):
                raise error


@pytest.mark.parametrize(
    "rules, words",
    [
        ({"eos": "nothing"}, "policy.eos = 'nothing' is not one token"),
        ({"eos": "template"}, "no chat template ends a turn"),
        ({"chat_template": "no-file"}, "policy.chat_template = 'no-file'"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(make_model, rules, words):
    with pytest.raises(PolicyError, match=words):
        read(make_model(), [], **rules)


def test_templates_are_chosen_by_name_or_file(make_model, tmp_path):
    folder = make_model()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((folder / "tokenizer_config.json").read_text())
            | {"chat_template": [{"name": "short", "template": "{{ messages[-1].content }}:"}]}
        )
    )
    with pytest.raises(PolicyError, match="several chat templates, and none is the default"):
        read(folder, [])
    assert read(folder, [Pair("hi", "a", "b")], chat_template="short")[0][0][0] == "hi:"
    (tmp_path / "t.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    chosen = str(tmp_path / "t.jinja")
    assert read(folder, [Pair("hi", "a", "b")], chat_template=chosen)[0][0] == (
        "<hi>", "<a></s>", "<b></s>",
    )  # fmt: skip
    (tmp_path / "t.jinja").write_text(" ")
    with pytest.raises(PolicyError, match="is empty"):
        read(folder, [], chat_template=chosen)


def test_the_digest_follows_what_tokens_depend_on_and_nothing_else(make_model):
    def digest(folder, **rules):
        return Speller(hub.load_tokenizer(folder, False), TextRules(**rules)).digest

    plain = digest(make_model("a"))
    assert digest(make_model("b")) == plain
    assert digest(make_model("b", padding_side="left", model_max_length=9)) == plain
    assert digest(make_model("b", merges=(("y", "e"),))) != plain
    assert digest(make_model("b", eos_token="<|im_end|>")) != plain
    templated = digest(make_model("b", "chatml"))
    assert templated != plain and digest(make_model("b", "rewriting")) != templated
    assert digest(make_model("b", "chatml"), chat_template="none") == plain


def test_the_tokens_are_those_of_plain_transformers(make_model):
    from transformers import AutoTokenizer

    folder = make_model(merges=(("y", "e"), ("ye", "s")))
    theirs = AutoTokenizer.from_pretrained(folder)
    tokens = tokenize([Pair("Is it?\n", "yes", "no, no")], theirs, "plain", 99)
    prompt, chosen, rejected = (part.tolist() for part in tokens.parts(0))
    assert prompt + chosen == theirs("Is it?\nyes").input_ids + [2]
    assert prompt + rejected == theirs("Is it?\nno, no").input_ids + [2]


def test_tallies_of_agents_add_up():
    found = summed([Tally(1, 4, "a"), Tally(2, 2, "b"), Tally(0, 5, "a"), Tally(0, 9, "c")])
    assert list(map(str, found)) == ["1 of 9 a", "2 of 2 b"]


def test_progress_counts_every_pair(make_model):
    done = []
    pairs = [Pair("a", " b", " c")] * 300
    tokenizer = hub.load_tokenizer(make_model(), False)
    tokenize(pairs, tokenizer, "plain", 64, progress=done.append)
    assert done == [256, 44]
    assert np.sum(done) == len(pairs)


def test_a_signal_is_not_taken_for_a_fault_of_foreign_code():
    class Interrupted(BaseException):
        """What a signal raises, also in the middle of foreign code."""

    with pytest.raises(Interrupted):
        with foreign("the model cannot score", "look at the model"):
            raise Interrupted
