"""Graphs and mixing matrices from files, with errors that name the line or the entry.

Two kinds, distinguished by the suffix:

- edge list (any suffix but those below): a line ``i j`` or ``i j weight`` per undirected edge,
  separated by blanks; ``i i weight`` sets an agent's own weight; ``#`` starts a comment.
- matrix: ``.npz`` (a scipy sparse matrix, or one dense array), ``.npy``, or ``.csv`` (a line per
  row). Entry (i, j) is the weight that agent i gives to what j sends. Nothing is ever unpickled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import networkx as nx
import numpy as np
from scipy.sparse import csr_array, load_npz

from decdpo.errors import TopologyError
from decdpo.files import open_regular, reason
from decdpo.topology.names import MAX_AGENTS

MATRIX_SUFFIXES = (".npz", ".npy", ".csv")

_UNSOUND = (
    OSError, ValueError, KeyError, IndexError, EOFError, TypeError, MemoryError, RuntimeError,
    BadZipFile,
)  # fmt: skip
"""What numpy and scipy raise for a file that is damaged or no matrix."""


@dataclass(frozen=True, eq=False)
class EdgeList:
    """The content of an edge list.

    num_agents : n. pairs : (m, 2) agent ids, without self-loops. weights : (m,) float64, or None
    if the file holds none. own : own weights that the file sets, by agent.
    """

    num_agents: int
    pairs: np.ndarray
    weights: np.ndarray | None
    own: dict[int, float]


def is_matrix_file(path: str | Path) -> bool:
    """Say whether ``path`` is read as a matrix rather than as an edge list."""
    return Path(path).suffix.lower() in MATRIX_SUFFIXES


def read_edge_list(path: str | Path, num_agents: int | None = None) -> EdgeList:
    """Read an edge list; ``num_agents`` None means one more than the largest id.

    Raises ``TopologyError`` naming the line: not two ids (and a weight), an id out of range, an
    edge given twice, a self-loop without weight, weights on some lines only.
    """
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    own: dict[int, float] = {}
    seen: dict[tuple[int, int], int] = {}
    first = 0
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        i, j, weight = _edge(line, where)
        if num_agents is not None and max(i, j) >= num_agents:
            raise TopologyError(
                f"{where}: agent {max(i, j)}, but there are {num_agents} agents (0 ... "
                f"{num_agents - 1})",
                "correct the line, or set the number of agents",
            )
        key = (min(i, j), max(i, j))
        if key in seen:
            raise TopologyError(
                f"{where}: the edge {i} {j} is already on line {seen[key]}",
                "give every edge once; it counts in both directions",
            )
        seen[key] = number
        if i == j:
            if weight is None:
                raise TopologyError(
                    f"{where}: an edge from agent {i} to itself",
                    "delete the line: every agent counts itself",
                )
            own[i] = weight
            continue
        first = first or number
        if pairs and (weight is None) != (not weights):
            raise TopologyError(
                f"{where} has {'no' if weight is None else 'a'} weight, unlike line {first}",
                "give every edge a weight, or none",
            )
        pairs.append((i, j))
        if weight is not None:
            weights.append(weight)
    if own and pairs and not weights:
        raise TopologyError(
            f"{path}: agent {min(own)} has an own weight, but the edges have no weights",
            "give every edge a weight, or delete the lines of the form 'i i weight'",
        )
    if not seen and num_agents is None:
        raise TopologyError(f"{path} holds no edge", "give a line 'i j' for every edge")
    size = 1 + max(max(key) for key in seen) if num_agents is None else num_agents
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return EdgeList(size, array, np.array(weights) if weights or own else None, own)


def read_matrix(path: str | Path, num_agents: int | None = None) -> csr_array:
    """Read a square matrix (n, n) of float64 from ``.npz``, ``.npy`` or ``.csv``.

    Raises ``TopologyError`` if the file cannot be read, or is not a real (n, n) matrix of finite
    numbers with n = ``num_agents``, where that is given.
    """
    path = Path(path)
    matrix = _read_csv(path) if path.suffix.lower() == ".csv" else _read_numpy(path)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
        raise TopologyError(
            f"{path}: the shape {matrix.shape} is not that of a square matrix",
            "store one row and one column per agent",
        )
    if num_agents is not None and matrix.shape[0] != num_agents:
        raise TopologyError(
            f"{path}: a matrix for {matrix.shape[0]} agents, but there are {num_agents}",
            f"set the number of agents to {matrix.shape[0]}",
        )
    kind = matrix.dtype.kind
    if kind not in "fiub":
        raise TopologyError(f"{path}: entries of type {matrix.dtype}", "store real numbers")
    if isinstance(matrix, np.ndarray):
        matrix = csr_array(matrix.astype(np.float64))
    weights = matrix.astype(np.float64)
    weights.sum_duplicates()
    bad = np.flatnonzero(~np.isfinite(weights.data))
    if bad.size:
        row = int(np.searchsorted(weights.indptr, bad[0], side="right")) - 1
        raise TopologyError(
            f"{path}: entry ({row}, {weights.indices[bad[0]]}) is {weights.data[bad[0]]}",
            "store finite numbers",
        )
    return weights


def read_weights(path: str | Path, num_agents: int | None = None) -> csr_array:
    """Read mixing weights (n, n) from a matrix file or an edge list with weights.

    In an edge list, an agent without own weight keeps what its edges leave: 1 - sum_j w_ij.
    Whether the result can be mixed with is for ``MixingMatrix`` to check. Raises ``TopologyError``.
    """
    if is_matrix_file(path):
        return read_matrix(path, num_agents)
    edges = read_edge_list(path, num_agents)
    if edges.weights is None:
        raise TopologyError(
            f"{path}: weights = 'file', but the edges have no weights",
            "write 'i j weight' on every line, or choose another rule, such as metropolis",
        )
    n = edges.num_agents
    i, j = edges.pairs.T
    off = csr_array(
        (np.tile(edges.weights, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(n, n)
    )
    own = 1.0 - off.sum(axis=1)
    own[list(edges.own)] = list(edges.own.values())
    return csr_array(off + csr_array((own, (np.arange(n), np.arange(n))), shape=(n, n)))


def read_graph(path: str | Path, num_agents: int | None = None) -> nx.Graph:
    """Read a graph on 0 ... n-1; of a matrix only its support counts.

    Returns a Graph, or a DiGraph with an edge (j, i) for each entry (i, j) of a matrix whose
    support is not symmetric. Raises ``TopologyError``.
    """
    if is_matrix_file(path):
        matrix = read_matrix(path, num_agents)
        matrix.eliminate_zeros()
        coo = matrix.tocoo()
        arcs = {(int(j), int(i)) for i, j in zip(*coo.coords, strict=True) if i != j}
        undirected = all((i, j) in arcs for j, i in arcs)
        graph = nx.Graph() if undirected else nx.DiGraph()
        graph.add_nodes_from(range(matrix.shape[0]))
        graph.add_edges_from(sorted(arcs))
        return graph
    edges = read_edge_list(path, num_agents)
    graph = nx.Graph()
    graph.add_nodes_from(range(edges.num_agents))
    graph.add_edges_from(edges.pairs.tolist())
    return graph


def holds_weights(path: str | Path) -> bool:
    """Say whether the file gives weights: a matrix does, an edge list may.

    Raises ``TopologyError`` like ``read_edge_list``.
    """
    return is_matrix_file(path) or read_edge_list(path).weights is not None


def count_agents(path: str | Path) -> int:
    """Return n, the number of agents of the graph or matrix in the file.

    Raises ``TopologyError`` like a reader, and if an edge list has too few edges to connect the ids
    that it names: a mistyped id shall not pass for a huge graph.
    """
    if is_matrix_file(path):
        return int(read_matrix(path).shape[0])
    edges = read_edge_list(path)
    if edges.num_agents > len(edges.pairs) + 1:
        raise TopologyError(
            f"{path}: agent {edges.num_agents - 1}, but {len(edges.pairs)} edges connect at most "
            f"{len(edges.pairs) + 1} agents",
            "number the agents 0 ... n-1 without a gap",
        )
    return edges.num_agents


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of the lines that hold more than a comment."""
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                text = line.partition("#")[0].strip()
                if text:
                    yield number, text
    except (OSError, UnicodeDecodeError) as fault:
        raise _unreadable(path, fault) from fault


def _unreadable(path: str | Path, fault: Exception) -> TopologyError:
    return TopologyError(
        f"{path} cannot be read: {reason(fault)}",
        "name an edge list (lines 'i j [weight]') or a matrix (.npz, .npy or .csv)",
    )


def _edge(line: str, where: str) -> tuple[int, int, float | None]:
    fields = line.split()
    try:
        if len(fields) not in (2, 3):
            raise ValueError
        i, j = int(fields[0]), int(fields[1])
        weight = float(fields[2]) if len(fields) == 3 else None
    except ValueError:
        raise TopologyError(
            f"{where}: {line[:60]!r} is not an edge", "write 'i j' or 'i j weight'"
        ) from None
    if max(i, j) > MAX_AGENTS:
        raise TopologyError(
            f"{where}: agent {max(i, j)} is one too many for a graph",
            "number the agents 0 ... n-1 without a gap",
        )
    if min(i, j) < 0:
        raise TopologyError(f"{where}: agent {min(i, j)} is negative", "count agents from 0")
    if weight is not None and not 0 <= weight < float("inf"):
        raise TopologyError(f"{where}: the weight {weight:g} is not in [0, 1]", "correct it")
    return i, j, weight


def _read_csv(path: Path) -> np.ndarray:
    rows: list[list[float]] = []
    for number, line in _lines(path):
        row = []
        for column, field in enumerate(line.split(","), 1):
            try:
                row.append(float(field))
            except ValueError:
                raise TopologyError(
                    f"{path}, line {number}, column {column}: {field.strip()[:40]!r} is not a "
                    "number",
                    "write numbers separated by commas, one row per line",
                ) from None
        if rows and len(row) != len(rows[0]):
            raise TopologyError(
                f"{path}, line {number}: {len(row)} columns, but {len(rows[0])} in the first row",
                "give every row as many columns as there are agents",
            )
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def _read_numpy(path: Path) -> np.ndarray | csr_array:
    try:
        with open_regular(path) as stream:
            if not stream.read(6).startswith((b"PK", b"\x93NUMPY")):
                raise ValueError("neither a .npy nor a .npz file")
            stream.seek(0)
            # Given the path, numpy leaves a damaged file open.
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            with content:
                names = content.files
                if "format" in names and "shape" in names:
                    stream.seek(0)
                    return _read_sparse(stream)
                if len(names) == 1:
                    return content[names[0]]
    except _UNSOUND as fault:
        raise _unreadable(path, fault) from fault
    raise TopologyError(
        f"{path} holds {len(names)} arrays: {', '.join(names[:8])}",
        "store the matrix alone, or by scipy.sparse.save_npz",
    )


def _read_sparse(stream: BinaryIO) -> csr_array:
    stored: Any = load_npz(stream)
    if stored.format in ("csr", "csc", "bsr"):
        # Compiled code would follow indices that lead out of the arrays.
        stored.check_format(full_check=True)
    return csr_array(stored)
