"""Deals and hold-outs: everyone gets what the rule says, and nothing is lost or leaked."""

import numpy as np
import pytest

from decdpo.data import partition as deal
from decdpo.data.partition import Partition, parse_partition
from decdpo.errors import DataError


@pytest.mark.parametrize(
    "text, rule",
    [
        ("iid", Partition("iid")),
        ("contiguous", Partition("contiguous")),
        ("by:user", Partition("by", "user")),
        ("by:a:b", Partition("by", "a:b")),
        ("dirichlet:0.5", Partition("dirichlet", None, 0.5)),
        ("dirichlet:2:topic", Partition("dirichlet", "topic", 2.0)),
    ],
)
def test_rules_are_parsed(text, rule):
    assert parse_partition(text) == rule


@pytest.mark.parametrize(
    "text", ["", "random", "iid:3", "by:", "by", "dirichlet", "dirichlet:x", "dirichlet:-1",
             "dirichlet:0", "dirichlet:nan", "dirichlet:inf:topic"]
)
def test_other_rules_are_refused(text):
    with pytest.raises(DataError) as error:
        parse_partition(text)
    assert error.value.remedy


def test_iid_deals_are_even_random_and_repeatable():
    owner = deal.iid(103, 8, seed=1)
    assert sorted(np.bincount(owner)) == [12, 13, 13, 13, 13, 13, 13, 13]
    np.testing.assert_array_equal(owner, deal.iid(103, 8, seed=1))
    assert (owner != deal.iid(103, 8, seed=2)).mean() > 0.5
    assert (np.diff(owner) < 0).any()


def test_contiguous_deals_are_even_runs():
    assert deal.contiguous(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_dirichlet_deals_everything_and_alpha_sets_how_unlike_agents_are():
    labels = np.random.default_rng(0).integers(0, 10, 20_000)

    def distance(alpha):
        owner = deal.dirichlet(labels, 8, alpha, seed=0)
        assert owner.min() >= 0 and owner.max() < 8
        mixes = np.array([np.bincount(labels[owner == a], minlength=10) for a in range(8)])
        mixes = mixes / mixes.sum(axis=1, keepdims=True)
        return 0.5 * np.abs(mixes - np.bincount(labels) / len(labels)).sum(axis=1).mean()

    near, middle, far = distance(1000.0), distance(1.0), distance(0.05)
    assert near < 0.05 < 0.2 < middle < far and far > 0.5


def test_a_label_is_dealt_the_same_way_whatever_the_other_labels_are():
    labels = np.repeat([0, 1, 2], 50)
    changed = np.where(labels == 2, 3, labels)
    first, second = (deal.dirichlet(x, 4, 0.5, seed=0) for x in (labels, changed))
    np.testing.assert_array_equal(first[:100], second[:100])


def test_by_value_makes_every_value_an_agent():
    owner, names = deal.by_value(np.array([2, 0, 2, 1]), ["10", "9", "b"], None)
    assert names == ["9", "10", "b"]
    assert owner.tolist() == [2, 1, 2, 0]


def test_by_value_keeps_the_largest_values_and_leaves_the_rest_out():
    codes = np.array([0] * 3 + [1] * 5 + [2] * 1 + [3] * 4)
    owner, names = deal.by_value(codes, ["c", "b", "a", "d"], 2)
    assert names == ["b", "d"]
    assert owner.tolist() == [-1] * 3 + [0] * 5 + [-1] + [1] * 4


def test_by_value_needs_a_value_for_every_agent():
    with pytest.raises(DataError, match="4 agents, but the column has only 2 values"):
        deal.by_value(np.array([0, 1, 1]), ["a", "b"], 4)


def test_each_agent_holds_out_its_share():
    owner = np.array([0] * 100 + [1] * 15 + [2] * 2 + [3] * 1 + [-1] * 7)
    mask = deal.hold_out(owner, 4, 0.1, seed=0)
    assert [int(mask[owner == a].sum()) for a in range(4)] == [10, 2, 1, 0]
    assert not mask[owner == -1].any()
    assert not deal.hold_out(owner, 4, 0.0, seed=0).any()


def test_an_agents_hold_out_does_not_depend_on_the_others():
    alone = deal.hold_out(np.zeros(40, int), 1, 0.25, seed=3)
    beside = deal.hold_out(np.array([0] * 40 + [1] * 60), 2, 0.25, seed=3)
    np.testing.assert_array_equal(alone, beside[:40])


def test_groups_are_held_out_whole():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 2000)
    owner = rng.integers(-1, 5, 2000)
    mask = deal.hold_out(owner, 5, 0.2, seed=0, groups=groups)
    used = owner >= 0
    assert not mask[~used].any()
    assert not set(groups[mask]) & set(groups[used & ~mask])
    assert abs(mask.sum() / used.sum() - 0.2) < 0.03


def test_one_group_cannot_be_held_out():
    with pytest.raises(DataError, match="one group"):
        deal.hold_out(np.zeros(5, int), 1, 0.2, 0, groups=np.full(5, 3))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_shares_are_refused(fraction):
    with pytest.raises(DataError, match="holdout"):
        deal.hold_out(np.zeros(5, int), 1, fraction, 0)


def test_agents_without_training_pairs_are_named():
    deal.require_training(np.array([1, 2]), ["", ""])
    with pytest.raises(DataError, match=r"2 of 4 .* training pair: 1 \(ann\), 3") as error:
        deal.require_training(np.array([5, 0, 1, 0]), ["", "ann", "bo", ""])
    assert "--agents" in error.value.remedy
