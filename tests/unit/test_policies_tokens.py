"""From pairs to tokens, with a word-level tokenizer small enough to check by eye."""

import json

import numpy as np
import pytest

from decdpo.data.shard import Pair
from decdpo.errors import PolicyError
from decdpo.policies.lm.text.chat import as_messages
from decdpo.policies.tokens import tokenize

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")

WORDS = "what is it yes no really : user assistant Human Assistant ! a b c d e f g h".split()
WORDS += ["it "]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def make(template=None, bos=True, eos=True):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
    )
    tokenizer.chat_template = template
    return tokenizer


def words(tokenizer, pairs, prompt_format="plain", max_length=100, **more):
    """Tokenize and turn every part back into words."""
    tokens = tokenize(pairs, tokenizer, prompt_format, max_length, **more)
    vocabulary = {i: w for w, i in tokenizer.get_vocab().items()}
    read = [
        tuple(" ".join(vocabulary[i] for i in part.tolist()) for part in tokens.parts(row))
        for row in range(len(tokens.edges))
    ]
    return read, tokens


def test_prompt_and_answers_are_kept_apart_and_answers_end():
    read, tokens = words(make(), [Pair("what is it", " yes", " no really"), Pair("a", " b", "")])
    assert read == [
        ("<s> what is it", "yes </s>", "no really </s>"),
        ("<s> a", "b </s>", "</s>"),
    ]
    assert tokens.lengths.tolist() == [[2, 2], [3, 1]]
    assert tokens.edges[1, 0] == tokens.edges[0, 3] == 9 and len(tokens.ids) == 14
    assert not tokens.truncation


def test_words_do_not_run_into_each_other():
    read, _ = words(make(), [Pair("what is it", "yes", "\tno")])
    assert read == [("<s> what is it", "yes </s>", "no </s>")]


def test_an_empty_prompt_still_has_a_token_to_predict_from():
    assert words(make(), [Pair("", "yes", "no")])[0] == [("<s>", "yes </s>", "no </s>")]
    assert words(make(bos=False), [Pair("", "yes", "no")])[0] == [("</s>", "yes </s>", "no </s>")]


def test_a_prompt_whose_tokens_are_no_prefix_is_tokenized_apart():
    from tokenizers import pre_tokenizers

    tokenizer = make()
    # Punctuation alone separates, so that "it " and "yes" together are one unknown word.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
    read, _ = words(tokenizer, [Pair("it ", "yes", "!no")])
    assert read == [("<s> it ", "yes </s>", "! no </s>")]


def test_a_chat_template_wraps_prompt_and_answer():
    pair = Pair("\n\nHuman: a b\n\nAssistant: c\n\nHuman: d\n\nAssistant:", " yes", " no !")
    read, _ = words(make(TEMPLATE), [pair], "hh")
    assert read == [
        (
            "user : a b </s> assistant : c </s> user : d </s> assistant :",
            "yes </s>",
            "no ! </s>",
        )
    ]
    listed = json.dumps([{"role": "user", "content": "a b"}])
    assert words(make(TEMPLATE), [Pair(listed, "yes", "no")], "messages")[0] == [
        ("user : a b </s> assistant :", "yes </s>", "no </s>")
    ]


def test_messages_without_a_template_become_labelled_turns():
    listed = json.dumps([{"role": "user", "content": "what"}])
    read, _ = words(make(), [Pair(listed, "yes", "no")], "messages")
    assert read[0][1:] == ("yes </s>", "no </s>")


def test_transcripts_become_alternating_messages():
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: "
    text += "\n\nHuman: Human: d\n\nAssistant:"
    assert as_messages(text, "hh") == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "Human: d"},
    ]
    assert as_messages("e\n\nHuman: f\n\nAssistant:", "hh")[0]["content"] == "e\n\nf"
    assert as_messages("a", "plain") == [{"role": "user", "content": "a"}]


LONG = Pair("a b c d e f g h", " yes", " no no no")


@pytest.mark.parametrize(
    "limit, least, expected, counts",
    [
        # 9 + 4 tokens fit exactly
        (13, None, ("<s> a b c d e f g h", "yes </s>", "no no no </s>"), (0, 0, 0)),
        # the prompt loses its start, not its first token, and no more than it must
        (12, None, ("<s> b c d e f g h", "yes </s>", "no no no </s>"), (1, 0, 1)),
        (8, None, ("<s> f g h", "yes </s>", "no no no </s>"), (1, 0, 5)),
        # half of the limit is the prompt's; then the longer answer loses its end
        (6, None, ("<s> g h", "yes </s>", "no no no"), (1, 1, 7)),
        (6, 5, ("<s> e f g h", "yes", "no"), (1, 2, 8)),
        (6, 1, ("<s> h", "yes </s>", "no no no </s>"), (1, 0, 7)),
    ],
)
def test_truncation_is_minimal_and_counted(limit, least, expected, counts):
    read, tokens = words(make(), [LONG], max_length=limit, min_prompt_length=least)
    assert read == [expected]
    cut = tokens.truncation
    assert (cut.prompts, cut.answers, cut.tokens) == counts
    assert bool(cut) == (counts != (0, 0, 0))
    assert f"{counts[0]} of 1 prompts" in str(cut) and f"{counts[1]} of 2 answers" in str(cut)


def test_the_digest_follows_ids_and_boundaries():
    def digest(*pairs):
        return words(make(), pairs)[1].digest

    assert digest(Pair("a", "b", "c")) == digest(Pair("a ", "b", "c"))
    assert digest(Pair("a", "b", "c")) != digest(Pair("a", "c", "b"))
    assert digest(Pair("a b", " c", "d")) != digest(Pair("a", " b c", "d"))


def test_no_pairs_make_an_empty_shard():
    tokens = tokenize([], make(), "plain", 10)
    assert tokens.edges.shape == (0, 4) and tokens.ids.dtype == np.int32


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(PolicyError, match="end-of-sequence"):
        tokenize([LONG], make(eos=False), "plain", 10)
