"""Mixing matrices: how much each agent weighs what its neighbours send.

Row i of W holds the weights of agent i: x_i <- sum_j w_ij x_j. Plain gossip keeps the average of
all agents and reaches consensus if W is doubly stochastic, non-negative, connected and aperiodic;
push-sum needs the columns alone to sum to one. All this is checked, once, on construction.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import csc_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from decdpo.errors import TopologyError
from decdpo.topology.row import Row
from decdpo.topology.spectrum import (
    column_stochastic_gap,
    doubly_stochastic_gap,
    symmetric_gap,
)

TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class MixingMatrix:
    """A sparse mixing matrix that has passed every check.

    Parameters
    ----------
    weights : (n, n) float64; w_ij is what agent i gives to the message of j.
    doubly_stochastic : whether rows must sum to one as well as columns; False for push-sum.
    name : where the weights come from, for error messages.
    shares : (n,) what agents count as in the mean that mixing keeps, sum_i shares_i x_i, where that
        is not all the same: the rows sum to one, and shares^T W = shares^T.

    Raises ``TopologyError``, naming row, column and value, if a weight is negative or not finite,
    or a sum is not 1 within 1e-12; and if the graph is disconnected or periodic.
    """

    weights: csr_array
    doubly_stochastic: bool = True
    name: str = "the mixing matrix"
    shares: np.ndarray | None = None
    _rows: dict[int, Row] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        weights = csr_array(self.weights).astype(np.float64, copy=True)
        weights.sum_duplicates()
        weights.eliminate_zeros()
        object.__setattr__(self, "weights", weights)
        _check_entries(weights, self.name)
        if self.shares is None:
            _check_sums(weights.sum(axis=0), "column", self.name)
        else:
            _check_sums(self.shares @ weights / self.shares, "share", self.name)
        if self.doubly_stochastic or self.shares is not None:
            _check_sums(weights.sum(axis=1), "row", self.name)
        require_connected(weights, f"the graph of {self.name}")
        _check_aperiodic(weights, self.name)

    @property
    def num_agents(self) -> int:
        """The number of agents n."""
        return int(self.weights.shape[0])

    @cached_property
    def own(self) -> np.ndarray:
        """The agents' own weights w_ii (n,)."""
        return self.weights.diagonal()

    @cached_property
    def _columns(self) -> csc_array:
        return self.weights.tocsc()

    def row(self, agent: int) -> Row:
        """Return what ``agent`` receives and sends; the same object every time."""
        row = self._rows.get(agent)
        if row is None:
            w, c = self.weights, self._columns
            received = slice(w.indptr[agent], w.indptr[agent + 1])
            sources, values = w.indices[received], w.data[received]
            others = sources != agent
            targets = c.indices[c.indptr[agent] : c.indptr[agent + 1]]
            row = self._rows[agent] = Row(
                own=float(self.own[agent]),
                sources=tuple(sources[others].tolist()),
                weights=tuple(values[others].tolist()),
                targets=tuple(targets[targets != agent].tolist()),
            )
        return row

    @cached_property
    def num_sources(self) -> np.ndarray:
        """From how many neighbours each agent receives, (n,) int64."""
        return np.diff(self.weights.indptr).astype(np.int64) - (self.own != 0)

    @property
    def support(self) -> csr_array:
        """The matrix (n, n) with a one where W has an entry."""
        w = self.weights
        return csr_array((np.ones(w.nnz), w.indices, w.indptr), shape=w.shape)

    @cached_property
    def symmetric(self) -> bool:
        """Whether W equals its transpose within 1e-12."""
        difference = csr_array(self.weights - self.weights.T)
        return bool((np.abs(difference.data) <= TOLERANCE).all())

    @cached_property
    def directed(self) -> bool:
        """Whether some agent receives from another that it does not send to."""
        return bool(csr_array(self.support - self.support.T).count_nonzero())

    @cached_property
    def spectral_gap(self) -> float:
        """1 - rho, precise also where it is tiny."""
        if self.shares is not None:
            # Its eigenvalues are those of its transpose, whose columns sum to one.
            return column_stochastic_gap(csr_array(self.weights.T))
        if not self.doubly_stochastic:
            return column_stochastic_gap(self.weights)
        return (symmetric_gap if self.symmetric else doubly_stochastic_gap)(self.weights)

    @property
    def rho(self) -> float:
        """The factor by which a round contracts the distance to consensus.

        max(|lambda_2|, |lambda_n|) of a symmetric W; the second largest singular value of another
        doubly stochastic one; |lambda_2|, an asymptotic factor, of one for push-sum or with shares.
        """
        return 1 - self.spectral_gap

    @cached_property
    def digest(self) -> str:
        """SHA-256 of support and weights: equal on processes that mix alike."""
        w = self.weights
        digest = hashlib.sha256(f"mixing matrix of {self.num_agents} agents".encode())
        for array, kind in ((w.indptr, "<i8"), (w.indices, "<i8"), (w.data, "<f8")):
            digest.update(array.astype(kind).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class CompleteMatrix:
    """The mixing matrix of the complete graph in O(1) memory: one own weight, one for all others.

    num_agents : n. own : w_ii; the n-1 others share the rest equally.
    """

    num_agents: int
    own: float
    doubly_stochastic = True
    symmetric = True
    directed = False

    @property
    def other(self) -> float:
        """w_ij for j != i."""
        return (1 - self.own) / (self.num_agents - 1) if self.num_agents > 1 else 0.0

    @property
    def weights(self) -> csr_array:
        """The matrix itself (n, n), made on demand: n * n values."""
        n = self.num_agents
        return csr_array(np.full((n, n), self.other) + (self.own - self.other) * np.eye(n))

    @cached_property
    def _agents(self) -> tuple[int, ...]:
        return tuple(range(self.num_agents))

    @cached_property
    def _others(self) -> tuple[float, ...]:
        return (self.other,) * (self.num_agents - 1)

    def row(self, agent: int) -> Row:
        """Return what ``agent`` receives and sends: from and to all, except itself."""
        others = self._agents[:agent] + self._agents[agent + 1 :]
        return Row(self.own, others, self._others, others)

    @property
    def num_sources(self) -> np.ndarray:
        """From how many neighbours each agent receives, (n,) int64."""
        return np.full(self.num_agents, self.num_agents - 1)

    @property
    def rho(self) -> float:
        """|w_ii - w_ij|: every eigenvalue but the leading one is w_ii - w_ij."""
        rho = abs(self.own - self.other) if self.num_agents > 1 else 0.0
        return rho if rho > 1e-15 else 0.0

    @property
    def spectral_gap(self) -> float:
        """1 - rho."""
        return 1 - self.rho

    @property
    def digest(self) -> str:
        """SHA-256 of the number of agents and the own weight."""
        text = f"complete matrix of {self.num_agents} agents, own weight {self.own!r}"
        return hashlib.sha256(text.encode()).hexdigest()


def require_connected(weights: csr_array, name: str) -> None:
    """Raise ``TopologyError`` unless every agent reaches every other along non-zero weights (n, n).

    The message names the components by their sizes and an agent of each.
    """
    count, label = connected_components(weights, directed=True, connection="strong")
    if count == 1:
        return
    sizes = np.bincount(label)
    firsts = np.unique(label, return_index=True)[1]
    order = np.argsort(-sizes, kind="stable")[:6]
    parts = ", ".join(f"{sizes[k]} with agent {firsts[k]}" for k in order)
    more = f", and {count - 6} more" if count > 6 else ""
    one_way = connected_components(weights, directed=False)[0] == 1
    raise TopologyError(
        f"{name} falls into {count} {'strongly connected ' if one_way else ''}components, of "
        f"sizes {parts}{more}",
        "add links between them: they could never agree"
        + (" (there are links one way only)" if one_way else ""),
    )


def _check_entries(w: csr_array, name: str) -> None:
    bad = np.flatnonzero(~(np.isfinite(w.data) & (w.data >= 0)))
    if bad.size:
        row = int(np.searchsorted(w.indptr, bad[0], side="right")) - 1
        column = int(w.indices[bad[0]])
        own = " (its own weight: what its neighbours leave)" if row == column else ""
        raise TopologyError(
            f"{name}: row {row}, column {column} is {w.data[bad[0]]:g}{own}",
            "make every weight a number in [0, 1]",
        )


def _check_sums(sums: np.ndarray, kind: str, name: str) -> None:
    off = np.abs(sums - 1)
    worst = int(off.argmax())
    if not off[worst] <= TOLERANCE:
        raise TopologyError(
            f"{name}: {kind} {worst} sums to {sums[worst]:.15g}, not 1 "
            f"({int((off > TOLERANCE).sum())} such {kind}s)",
            "store float64 weights with all their digits, every row and every column summing to 1",
        )


def _check_aperiodic(w: csr_array, name: str) -> None:
    """Refuse a connected support whose cycles all share a factor: its values would oscillate."""
    if w.diagonal().any():
        return
    order, before = breadth_first_order(w, 0, directed=True)
    level = np.zeros(w.shape[0], dtype=np.int64)
    for agent in order[1:]:
        level[agent] = level[before[agent]] + 1
    i, j = w.tocoo().coords
    period = int(np.gcd.reduce(level[i] + 1 - level[j]))
    if period != 1:
        raise TopologyError(
            f"{name}: all own weights are 0 and every cycle's length is a multiple of {period}, so "
            "that the values would oscillate for ever",
            "give the agents positive own weights",
        )
