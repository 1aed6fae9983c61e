"""The graph of the agents that are left when others are lost."""

import networkx as nx
import numpy as np
import pytest

from decdpo.topology.living import left_of
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import make_schedule, round_weights


def weights(left, t=0):
    """Return the matrix among the agents that are left, (m, m)."""
    found = round_weights(left.mixing(t), max(left.agents) + 1).toarray()
    lost = sorted(set(range(len(found))) - set(left.agents))
    off = found - np.diag(np.diag(found))
    assert not off[lost].any() and not off[:, lost].any(), "a lost agent sends and receives nothing"
    return found[np.ix_(left.agents, left.agents)]


def links(matrix):
    return {(i, j) for i, j in zip(*np.nonzero(matrix)) if i != j}


ALL = [
    ("ring", "auto"), ("ring", "uniform"), ("ring", "lazy"), ("path", "max_degree"),
    ("star", "auto"), ("complete", "auto"), ("complete", "lazy"), ("torus", "uniform"),
    ("hypercube", "auto"), ("exponential", "auto"), ("exponential_undirected", "auto"),
    ("one_peer_exponential", "auto"), ("random_matching", "auto"), ("two_clusters", "auto"),
]  # fmt: skip


@pytest.mark.parametrize("lost", [{0}, {3}, {0, 4}, {1, 3, 5}, {0, 1, 2, 4, 5, 6, 7}])
@pytest.mark.parametrize(("graph", "rule"), ALL)
def test_those_that_are_left_can_agree(graph, rule, lost):
    agents = [i for i in range(8) if i not in lost]
    left = left_of(make_schedule(graph, rule, 8, seed=1), agents)
    product = np.eye(len(agents))
    for t in range(250):
        w = weights(left, t)
        assert w.min() >= 0
        assert max(np.abs(w.sum(axis=axis) - 1).max() for axis in (0, 1)) < 1e-12
        product = w @ product
    np.testing.assert_allclose(product, 1 / len(agents), atol=1e-4)
    assert left.rho is not None and left.rho < 1


def test_push_weights_stay_column_stochastic_and_strongly_connected():
    full = make_schedule("exponential", "push", 8, push_sum=True)
    left = left_of(full, [0, 3, 4, 6])
    w = weights(left)
    np.testing.assert_allclose(w.sum(axis=0), 1, atol=1e-12)
    assert nx.is_strongly_connected(nx.from_numpy_array(w, create_using=nx.DiGraph))


def test_old_links_stay_and_parts_are_linked_where_links_are_few():
    full = make_schedule("ring", "auto", 8)
    one = left_of(full, [0, 1, 2, 4, 5, 6, 7])
    assert one.notes == ()
    chain = {(i, (i + 1) % 7) for i in range(7) if i != 2}
    assert links(weights(one)) == chain | {(j, i) for i, j in chain}
    two = left_of(full, [1, 2, 3, 5, 6, 7])
    assert two.notes == ("it fell apart and was linked again by 1-5",)
    star = left_of(make_schedule("star", "auto", 5), [1, 2, 3, 4])
    assert star.notes == ("it fell apart and was linked again by 1-2, 2-3, 3-4",)


def test_it_depends_on_who_is_left_alone():
    full = make_schedule("torus", "auto", 16)
    assert left_of(full, [0, 5, 7, 9]).digest == left_of(full, (0, 5, 7, 9)).digest
    assert left_of(full, [0, 5, 7, 9]).digest != left_of(full, [0, 5, 7, 10]).digest


def test_participants_are_drawn_from_those_that_are_left():
    full = Participation(6, 3, seed=4, weights=[1, 2, 3, 4, 5, 6])
    left = left_of(full, [1, 3, 4, 5])
    seen = set()
    for t in range(30):
        row = left.mixing(t).row(1)
        assert len(row.sources) == 3 and sum(row.weights) == pytest.approx(1)
        seen |= set(row.sources)
        (a, b), (x, y) = row.sources[:2], row.weights[:2]
        assert x / y == pytest.approx((a + 1) / (b + 1))
    assert seen == {1, 3, 4, 5}
    assert len(left_of(full, [2, 5]).mixing(0).row(2).sources) == 2
