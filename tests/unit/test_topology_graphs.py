"""Graphs have the shape that their names promise."""

import networkx as nx
import pytest

from decdpo.errors import TopologyError
from decdpo.topology import graphs
from decdpo.topology.graphs import make_graph
from decdpo.topology.names import DIRECTED, GRAPHS, TIME_VARYING, UNDIRECTED, options_used

STATIC = [*UNDIRECTED, *DIRECTED]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("ring", nx.cycle_graph(12)),
        ("path", nx.path_graph(12)),
        ("star", nx.star_graph(11)),
        ("complete", nx.complete_graph(12)),
        ("torus", nx.grid_2d_graph(3, 4, periodic=True)),
    ],
)
def test_graph_is_isomorphic_to_networkx_own(name: str, reference: nx.Graph) -> None:
    assert nx.is_isomorphic(make_graph(name, 12), reference)


def test_hypercube_and_exponential_have_the_right_links() -> None:
    assert nx.is_isomorphic(graphs.hypercube(16), nx.hypercube_graph(4))
    directed = graphs.exponential(10)
    assert {j for j, i in directed.in_edges(7)} == {8, 9, 1, 5}  # 7 + 1, 2, 4, 8 mod 10
    assert set(map(frozenset, directed.edges)) == set(
        map(frozenset, graphs.exponential_undirected(10).edges)
    )


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("num_agents", [1, 2, 3, 4, 5, 8, 9, 16, 64])
def test_every_graph_is_connected_on_all_agents_or_refuses_the_number(
    name: str, num_agents: int
) -> None:
    refused = (name == "torus" and num_agents in (2, 3, 5)) or (
        name == "hypercube" and num_agents in (3, 5, 9)
    )
    if refused:
        with pytest.raises(TopologyError) as caught:
            make_graph(name, num_agents)
        assert "take " in caught.value.remedy
        return
    graph = make_graph(name, num_agents)
    assert sorted(graph) == list(range(num_agents))
    assert nx.number_of_selfloops(graph) == 0
    assert (nx.is_strongly_connected if graph.is_directed() else nx.is_connected)(graph)


def test_torus_is_as_square_as_possible_and_names_the_nearest_usable_size() -> None:
    assert graphs.torus_shape(1000) == (25, 40)
    assert graphs.torus_shape(36) == (6, 6)
    with pytest.raises(TopologyError, match="13 is prime") as caught:
        graphs.torus(13)
    assert "12 or 14" in caught.value.remedy


def test_hypercube_names_the_nearest_powers() -> None:
    with pytest.raises(TopologyError, match="not a power of two") as caught:
        graphs.hypercube(12)
    assert "8 or 16" in caught.value.remedy


@pytest.mark.parametrize("name", ["random_regular", "erdos_renyi", "small_world"])
def test_random_graphs_follow_the_seed(name: str) -> None:
    edges = [sorted(make_graph(name, 40, seed=s).edges) for s in (1, 1, 2)]
    assert edges[0] == edges[1]
    assert edges[0] != edges[2]


@pytest.mark.parametrize("degree", [3, 4, 7, 10, 11])
def test_random_regular_is_regular(degree: int) -> None:
    assert {d for _, d in graphs.random_regular(12, degree, seed=3).degree} == {degree}


def test_two_clusters_are_joined_by_a_bridge_alone() -> None:
    graph = graphs.two_clusters(21)
    assert list(nx.bridges(graph)) == [(0, 11)]
    graph.remove_edge(0, 11)
    assert sorted(map(len, nx.connected_components(graph))) == [10, 11]


def test_erdos_renyi_tries_again_and_gives_up_with_the_parts() -> None:
    # at p = ln n / n about two samples in three are disconnected, so a few seeds need a retry
    for seed in range(5):
        assert nx.is_connected(graphs.erdos_renyi(60, 0.07, seed=seed))
    with pytest.raises(TopologyError, match="none of 20 samples is connected.*parts"):
        graphs.erdos_renyi(60, 0.005)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("random_regular", {"degree": 3}, "odd"),
        ("random_regular", {"degree": 9}, "0 ... 8"),
        ("random_regular", {"degree": 2, "seed": 0}, None),
        ("small_world", {"degree": 3}, "degree 3"),
        ("small_world", {"degree": 10}, "degree 10"),
        ("small_world", {"probability": 1.5}, "1.5"),
        ("erdos_renyi", {"probability": -0.1}, "-0.1"),
        ("erdos_renyi", {"probability": float("nan")}, "nan"),
    ],
)
def test_impossible_options_are_named(name: str, options: dict, words: str | None) -> None:
    if words is None:
        assert nx.is_connected(make_graph(name, 9, **options))
        return
    with pytest.raises(TopologyError, match=words):
        make_graph(name, 9, **options)


def test_a_crowd_of_edges_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(TopologyError, match="24,997,500 edges"):
        graphs.erdos_renyi(10_000, 0.5)


def test_options_used_covers_every_graph() -> None:
    assert set(GRAPHS) == {*UNDIRECTED, *DIRECTED, *TIME_VARYING, "file"}
    assert options_used("ring") == ()
    assert options_used("small_world", "file") == ("degree", "probability", "file")
    assert options_used("file", "file") == ("file",)
