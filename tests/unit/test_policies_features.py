"""Hashed features and sparse feature differences against dense arithmetic."""

import re
import subprocess
import sys
from hashlib import blake2b
from math import log

import numpy as np
import pytest
from limits import HANG

from decdpo.policies.features import Hashing, column_differences, hashed_differences

PAIRS = [
    ("The cat sat. The cat!", "a dog sat"),
    ("same words", "same words"),
    ("", "only one side"),
    ("Grüße, 世界", "plain"),
]


def test_words_and_adjacent_pairs_count_logarithmically_and_ignore_case():
    wide = 2**61
    values = sorted(abs(v) for v in Hashing(wide).features("The cat sat. The cat!").values())
    # the x2, cat x2, "the cat" x2; sat, ".", "!", "cat sat", "sat .", ". the", "cat !" once
    assert values == pytest.approx([1.0] * 7 + [1 + log(2)] * 3)
    assert Hashing(wide).features("THE CAT") == Hashing(wide).features("the cat")
    assert Hashing(wide).features("cat the") != Hashing(wide).features("the cat")


def test_features_are_the_same_in_another_process():
    code = (
        "from decdpo.policies.features import Hashing;"
        "print(sorted(Hashing(997, 3).features('to be or not to be').items()))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG
    )
    here = sorted(Hashing(997, 3).features("to be or not to be").items())
    assert other.stdout.strip() == str(here)


def plainly(text, dimension, seed):
    """Return the features of a text as the definition has them, term by term."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    terms = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:]))]
    found = {}
    for term in dict.fromkeys(terms):
        digest = blake2b(term.encode(), digest_size=8, salt=seed.to_bytes(8, "little")).digest()
        code = int.from_bytes(digest, "little")
        sign, count = 1 - 2 * (code & 1), terms.count(term)
        column = (code >> 1) % dimension
        found[column] = found.get(column, 0.0) + sign * (1 + log(count) if count > 1 else 1)
    return found


@pytest.mark.parametrize("dimension", [1, 3, 50, 2**16, 2**61])
def test_features_are_those_of_the_definition_to_the_bit(dimension):
    texts = [text for pair in PAIRS for text in pair] + ["a b a b a c, ü b a " * 9]
    for text in texts:
        found = Hashing(dimension, 5).features(text)
        assert list(found.items()) == list(plainly(text, dimension, 5).items())


def test_seed_draws_another_hash_function():
    assert Hashing(1000, 0).features("a b c") != Hashing(1000, 1).features("a b c")


def test_columns_and_signs_are_spread_evenly():
    words = " ".join(f"w{i}" for i in range(4000))
    features = Hashing(16).features(words)
    single = [Hashing(16).features(f"w{i}") for i in range(4000)]
    columns = np.array([c for f in single for c in f])
    signs = np.array([v for f in single for v in f.values()])
    assert set(features) == set(range(16))
    # A uniform draw of 4000 has a standard deviation of 15 per column, of 0.016 for the mean sign.
    assert np.abs(np.bincount(columns, minlength=16) - 250).max() < 75
    assert abs(signs.mean()) < 0.08


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hashed_differences_are_the_difference_of_both_answers(dtype):
    differences = hashed_differences(PAIRS, Hashing(50, 7), np.dtype(dtype))
    dense = np.zeros((len(PAIRS), 50))
    for row, pair in enumerate(PAIRS):
        for sign, text in zip((1, -1), pair):
            for column, value in Hashing(50, 7).features(text).items():
                dense[row, column] += sign * value
    assert differences.matrix.toarray() == pytest.approx(dense.astype(dtype))
    assert differences.values.dtype == dtype
    assert differences.matrix.has_sorted_indices


def test_batches_repeat_and_reorder_rows_and_keep_their_bits():
    rng = np.random.default_rng(0)
    differences = hashed_differences(PAIRS, Hashing(200), np.dtype(np.float32))
    theta = rng.standard_normal(200).astype(np.float32)
    rows = np.array([3, 1, 0, 3])
    batch = differences.batch(rows)
    assert (batch.margins(theta) == differences.margins(theta)[rows]).all()
    dense = differences.matrix.toarray()[rows]
    assert batch.margins(theta) == pytest.approx(dense @ theta, abs=1e-5)
    assert batch.margins(theta)[1] == 0
    weights = rng.standard_normal(4).astype(np.float32)
    out = np.ones(200, np.float32)
    batch.add_combination(weights, out)
    assert out == pytest.approx(1 + weights @ dense, abs=1e-5)


def test_an_empty_batch_has_no_margins():
    batch = hashed_differences(PAIRS, Hashing(20), np.dtype(np.float32)).batch(np.zeros(0, np.intp))
    assert batch.margins(np.ones(20, np.float32)).shape == (0,)


def test_column_differences_keep_explicit_features():
    rng = np.random.default_rng(1)
    chosen, rejected = rng.standard_normal((2, 5, 3))
    differences = column_differences(chosen, rejected, np.dtype(np.float64))
    assert (differences.matrix.toarray() == chosen - rejected).all()
    assert differences.margins(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        (chosen - rejected) @ [1.0, 2.0, 3.0]
    )
