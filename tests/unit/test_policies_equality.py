"""The fast way to score pairs beside the model's own, on real texts: the same to rounding.

Set DECDPO_TEST_MODEL to the folder of another model, which takes the place of the small real one,
and DECDPO_TEST_PAIRS to how many pairs it shall score.
"""

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import random_model
from random_model import byte_tokenizer
from shells import ROOT
from small_models import STORIES

from decdpo.data.shard import Pair
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.forward.packing import packed_size
from decdpo.policies.lm.text.speller import Speller, TextRules
from decdpo.policies.tokens import tokenize

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
HH = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless-base_test.jsonl.gz"
MODEL = Path(os.environ.get("DECDPO_TEST_MODEL") or STORIES)
PAIRS = int(os.environ.get("DECDPO_TEST_PAIRS") or 100)
ROW, LENGTH, LONGER = 2048, 128, 512
"""Tokens of a packed row, and of a prompt and an answer: of real models, and of random ones."""


def dialogues(count):
    """Return the first pairs of HH-RLHF whose answers have the same prompt."""
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        split = ([r[k].rpartition("Assistant:") for k in ("chosen", "rejected")] for r in rows)
        pairs = (Pair(c[0] + c[1], c[2], r[2]) for c, r in split if c[0] == r[0])
        return list(islice(pairs, count))


def questions(count):
    """Return the first pairs of the embedded data set."""
    with gzip.open(ROOT / "data" / "preferences.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = map(json.loads, islice(lines, count))
        return [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


class OwnWay:
    """Scores answer by answer as the model itself would, with the log-softmax in float64.

    In float32 torch sums the exponentials of 49,152 logits to 1e-5 only.
    """

    def __init__(self, module):
        self.module = module

    def parts(self, tokens, rows):
        return rows[:, None]

    def __call__(self, tokens, rows):
        prompt, *answers = tokens.parts(int(rows[0]))
        return torch.stack([self.answer(prompt, answer) for answer in answers])[:, None]

    def answer(self, prompt, answer):
        ids = torch.from_numpy(np.concatenate((prompt, answer))).long()[None]
        logits = self.module(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        each = logits.double().log_softmax(dim=-1).gather(1, ids[0, len(prompt) :, None])
        return each.sum().float()


def scored(scorer, tokens):
    """Return (2, N) log-probabilities, and the gradient of a sum of weighted differences."""
    rows = np.arange(len(tokens.edges))
    weights = torch.linspace(0.2, 1.0, len(rows))
    scorer.module.zero_grad()
    found = []
    for part in scorer.parts(tokens, rows):
        logps = scorer(tokens, part)
        (weights[part] * (logps[0] - logps[1])).sum().backward()
        found.append(logps.detach())
    slope = torch.cat([p.grad.flatten() for p in scorer.module.parameters() if p.grad is not None])
    return torch.cat(found, dim=1), slope


def errors(model, tokens):
    """Return how far the fast way is from the model's own, relatively: log-probabilities, gradient.

    Of log-probabilities it is the largest of all answers, of the gradient the norm.
    """
    logps, slope = scored(OwnWay(model), tokens)
    fast = PackedLM(model, ROW)
    assert len(tokens.edges) > len(fast.parts(tokens, np.arange(len(tokens.edges))))
    found, found_slope = scored(fast, tokens)
    assert logps.max() < 0 and slope.any()
    return (
        float(((found - logps) / logps).abs().max()),
        float((found_slope - slope).norm() / slope.norm()),
    )


@pytest.mark.skipif(not HH.is_file(), reason=f"no data set {HH}")
@pytest.mark.skipif(not MODEL.is_dir(), reason=f"no model {MODEL}")
def test_a_real_model_scores_real_pairs_alike():
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    speller = Speller(tokenizer, TextRules(chat_template="none"))
    tokens = tokenize(dialogues(PAIRS), speller, "plain", LENGTH)
    assert len(tokens.edges) == PAIRS
    of_logps, of_gradient = errors(model, tokens)
    print(f"{MODEL.name}, {PAIRS} pairs: {of_logps:.2g} {of_gradient:.2g}")
    assert of_logps < 1e-6 and of_gradient < 1e-4


@pytest.mark.parametrize("family", ["absolute positions", "soft caps"])
def test_random_models_score_long_and_short_pairs_alike(family):
    tokenizer = byte_tokenizer()
    tokens = tokenize(questions(12), Speller(tokenizer, TextRules()), "plain", LONGER)
    sizes = packed_size(tokens, np.arange(12))
    assert sizes.min() < 384 < sizes.max(), "segments that attend at once, and in two parts"
    of_logps, of_gradient = errors(random_model(family, len(tokenizer), LONGER), tokens)
    assert of_logps < 1e-6 and of_gradient < 1e-4
