"""What policies refuse of a shard: pairs of which they see nothing, numbers they cannot hold."""

import numpy as np
import pytest
import torch

from decdpo.data.shard import PreferenceShard
from decdpo.data.synthetic import Choices
from decdpo.errors import DataError, PolicyError
from decdpo.policies.arrays import reference_vector
from decdpo.policies.encoded import shard_columns
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.tabular import Tabular
from decdpo.policies.trajectory import Trajectory

BLANK = ("", "", "")
TEXT = ("p", "0:0 1:1", "0:1")


def shard_of(*pairs, **columns):
    columns = {name: np.array(values, float) for name, values in columns.items()}
    return PreferenceShard.from_pairs(pairs, columns=columns, agent=3)


READERS = {
    "hashed": lambda: LogLinear(64),
    "tabular": lambda: Tabular(2, 2),
    "trajectory": lambda: Trajectory(np.ones((2, 2, 3))),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_policy_of_texts_refuses_pairs_without_text(reader):
    with pytest.raises(DataError, match=r"agent 0: 128 of 128 pairs have no text") as error:
        READERS[reader]().encode(Choices(agents=1).shard(0))
    assert 'policy.features = "columns"' in error.value.remedy


@pytest.mark.parametrize("reader", READERS)
def test_a_few_pairs_without_text_are_refused_as_well(reader):
    with pytest.raises(DataError, match=r"agent 3: 1 of 3 .*source row 2") as error:
        READERS[reader]().encode(shard_of(TEXT, BLANK, TEXT))
    assert error.value.remedy == "shard a source that has texts"
    READERS[reader]().encode(shard_of(TEXT, TEXT))


def test_feature_columns_need_no_text():
    policy = LogLinear(16, features="columns")
    assert policy.encode(Choices(agents=1).shard(0)).num_pairs == 128


@pytest.mark.parametrize(
    "dtype, value", [("float32", 1e39), ("float32", -2e38), ("float64", 1e308)]
)
def test_a_feature_that_the_dtype_cannot_hold_is_named(dtype, value):
    shard = shard_of(
        BLANK, BLANK, chosen_features=[[1, 2], [3, value]], rejected_features=[[0, 0], [0, -value]]
    )
    text = rf"agent 3: the difference of feature 1 .* of source row 2 is .*{dtype} cannot hold"
    with pytest.raises(DataError, match=text):
        LogLinear(2, features="columns", dtype=dtype).encode(shard)


def test_a_score_difference_that_the_dtype_cannot_hold_is_named():
    shard = shard_of(TEXT, TEXT, score_chosen=[0, 1e39], score_rejected=[0, 0])
    with pytest.raises(DataError, match=r"score difference of source row 2 is 1e\+39"):
        shard_columns(shard, torch.float32, torch.device("cpu"))
    assert shard_columns(shard, torch.float64, torch.device("cpu"))["score_gap"][1] == 1e39


def test_weights_too_large_to_be_summed_are_named():
    with pytest.raises(DataError, match=r"weight 1e\+308 of source row 1 is too large"):
        shard_columns(shard_of(TEXT, TEXT, weight=[1e308, 1e308]), torch.float32, None)


def test_a_feature_map_or_reference_beyond_the_dtype_is_refused():
    features = np.ones((2, 2, 3))
    features[1, 0, 2] = 1e39
    with pytest.raises(PolicyError, match=r"feature 2 of state 1 and action 0 is 1e\+39"):
        Trajectory(features)
    with pytest.raises(PolicyError, match="float32 can hold"):
        reference_vector(np.array([1e39]), 1, "float32")
