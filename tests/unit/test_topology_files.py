"""Graph and matrix files: what is read, and which line is to blame."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from scipy.sparse import csr_array, save_npz

from decdpo.errors import TopologyError
from decdpo.topology.files import (
    count_agents,
    read_edge_list,
    read_graph,
    read_matrix,
    read_weights,
)

W = np.array([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]])


def test_edge_list_with_comments_and_own_weights(tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_text("# the path of three\n\n0 1 0.5   # first\n2 1 0.25\n2 2 0.75\n")
    edges = read_edge_list(path)
    assert edges.num_agents == 3
    assert edges.pairs.tolist() == [[0, 1], [2, 1]]
    assert edges.own == {2: 0.75}
    np.testing.assert_array_equal(read_weights(path).toarray(), W)
    assert nx.utils.graphs_equal(read_graph(path), nx.path_graph(3))
    assert len(read_graph(path, 5)) == 5
    assert count_agents(path) == 3


def test_a_mistyped_id_is_no_huge_graph(tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_text("0 1\n1 200000\n")
    with pytest.raises(TopologyError, match="agent 200000, but 2 edges connect at most 3"):
        count_agents(path)
    path.write_text("0 1\n1 99999999999999999999\n")
    with pytest.raises(TopologyError, match="line 2: agent 99999999999999999999 is one too many"):
        count_agents(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 1\n1 two\n", "line 2: '1 two' is not an edge"),
        ("0 1\n\n# x\n1\n", "line 4: '1' is not an edge"),
        ("0 1 2 3\n", "line 1"),
        ("0 1\n0 -1\n", "line 2: agent -1 is negative"),
        ("0 1\n1 7\n", "line 2: agent 7, but there are 4 agents"),
        ("0 1\n1 2\n1 0\n", "line 3: the edge 1 0 is already on line 1"),
        ("0 1\n2 2\n", "line 2: an edge from agent 2 to itself"),
        ("0 1 0.5\n1 2\n", "line 2 has no weight, unlike line 1"),
        ("0 1\n1 2 0.5\n", "line 2 has a weight, unlike line 1"),
        ("0 1 -0.5\n", "line 1: the weight -0.5"),
        ("0 1 nan\n", "line 1: the weight nan"),
        ("1 1 0.5\n0 1\n", "agent 1 has an own weight"),
    ],
)
def test_bad_edge_lists_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "g.txt"
    path.write_text(text)
    with pytest.raises(TopologyError, match=words) as caught:
        read_edge_list(path, 4)
    assert str(path) in caught.value.what and caught.value.remedy


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="none.txt cannot be read: No such file"):
        read_graph(tmp_path / "none.txt")
    for name in ("x.txt", "x.npz", "x.npy", "x.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00 PK\x03\x04 rubbish" * 9)
        with pytest.raises(TopologyError, match=f"{name} cannot be read"):
            read_graph(tmp_path / name)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(TopologyError, match="holds no edge"):
        read_graph(tmp_path / "empty.txt")
    assert len(read_graph(tmp_path / "empty.txt", 1)) == 1
    with pytest.raises(TopologyError, match="cannot be read"):
        read_matrix(tmp_path)


@pytest.mark.parametrize("kind", ["dense.npz", "sparse.npz", "w.npy", "w.csv"])
def test_matrix_files_keep_every_bit(tmp_path: Path, kind: str) -> None:
    w = W / 3
    path = tmp_path / kind
    if kind == "dense.npz":
        np.savez(path, w)
    elif kind == "sparse.npz":
        save_npz(path, csr_array(w))
    elif kind == "w.npy":
        np.save(path, w)
    else:
        path.write_text("# rows\n" + "\n".join(",".join(map(repr, r)) for r in w.tolist()))
    np.testing.assert_array_equal(read_matrix(path, 3).toarray(), w)
    assert count_agents(path) == 3
    with pytest.raises(TopologyError, match="for 3 agents, but there are 4"):
        read_matrix(path, 4)


def test_the_support_of_a_matrix_is_a_graph(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", W)
    assert nx.utils.graphs_equal(read_graph(tmp_path / "w.npy"), nx.path_graph(3))
    np.save(tmp_path / "d.npy", 0.5 * (np.eye(4) + np.roll(np.eye(4), 1, axis=1)))
    graph = read_graph(tmp_path / "d.npy")  # agent i receives from i + 1, so i + 1 sends to i
    assert graph.is_directed() and set(graph.edges) == {(1, 0), (2, 1), (3, 2), (0, 3)}


def test_bad_matrices_say_where(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    for text, words in (
        ("1,0\n0,x\n", "line 2, column 2: 'x' is not a number"),
        ("1,0\n0\n", "line 2: 1 columns, but 2"),
        ("1,0\n", r"shape \(1, 2\)"),
        ("", r"shape \(0,\)"),
        ("1,0\n0,inf\n", r"entry \(1, 1\) is inf"),
    ):
        path.write_text(text)
        with pytest.raises(TopologyError, match=words):
            read_matrix(path)
    np.savez(tmp_path / "two.npz", a=W, b=W)
    with pytest.raises(TopologyError, match="holds 2 arrays: a, b"):
        read_matrix(tmp_path / "two.npz")
    np.save(tmp_path / "c.npy", W * 1j)
    with pytest.raises(TopologyError, match="complex128"):
        read_matrix(tmp_path / "c.npy")


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize(
    ("indices", "indptr"), [([0, 9], [0, 1, 2]), ([0, -1], [0, 1, 2]), ([0, 1], [0, 2, 1])]
)
def test_sparse_files_that_point_outside_are_refused(
    tmp_path: Path, kind: str, indices: list[int], indptr: list[int]
) -> None:
    path = tmp_path / "w.npz"
    parts = {"data": np.ones(2), "indices": np.array(indices), "indptr": np.array(indptr)}
    np.savez(path, shape=np.array([2, 2]), format=np.array(kind.encode()), **parts)
    with pytest.raises(TopologyError, match="w.npz cannot be read"):
        read_matrix(path)


def test_a_matrix_of_no_agents_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.zeros((0, 0)))
    with pytest.raises(TopologyError, match=r"w.npy: the shape \(0, 0\)"):
        count_agents(tmp_path / "w.npy")


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("0 1\n1 2\n", encoding="utf-8-sig", newline="\r\n")
    assert nx.utils.graphs_equal(read_graph(tmp_path / "g.txt"), nx.path_graph(3))
    (tmp_path / "w.csv").write_text("1,0\n0,1\n", encoding="utf-8-sig")
    assert read_matrix(tmp_path / "w.csv").shape == (2, 2)


def test_a_file_of_another_kind_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "w.npy").write_bytes(b"\x80\x04 rubbish")
    with pytest.raises(TopologyError, match="neither a .npy nor a .npz file"):
        read_matrix(tmp_path / "w.npy")


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([[object()]]), allow_pickle=True)
    np.savez(tmp_path / "o.npz", np.array([[object()]], dtype=object))
    for name in ("o.npy", "o.npz"):
        with pytest.raises(TopologyError, match="cannot be read"):
            read_matrix(tmp_path / name)
