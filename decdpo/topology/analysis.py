"""What a topology costs and how fast it mixes, as numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse.csgraph import dijkstra

from decdpo.topology.mixing import MixingMatrix
from decdpo.topology.schedule import Static, Topology

MAX_DIAMETER_WORK = 20_000_000
"""Agents times links up to which the diameter is worked out (a second or two)."""


@dataclass(frozen=True)
class Summary:
    """One line of the table; of a time-varying schedule, links and traffic are those of a round.

    graph, weights : names. nodes : agents. edges : undirected edges, or arcs if directed. directed.
    degree_min, degree_max, degree_mean : neighbours that an agent receives from in a round.
    diameter : longest shortest path in hops; None where not worked out, or the graph varies.
    period : rounds after which the weights repeat. rho, spectral_gap : over one period.
    rho_per_round : rho**(1/period). rounds_to_halve : rounds that surely halve the consensus error
    (the distance to the average); None if none do. messages_per_round, bytes_per_round : sent by
    all agents together, without headers. digest : SHA-256 of the weights.
    """

    graph: str
    weights: str
    nodes: int
    edges: int
    directed: bool
    degree_min: int
    degree_max: int
    degree_mean: float
    diameter: int | None
    period: int
    rho: float
    rho_per_round: float
    spectral_gap: float
    rounds_to_halve: int | None
    messages_per_round: int
    bytes_per_round: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def summarize(
    schedule: Topology, graph: str, weights: str, *, num_params: int = 0, value_size: int = 4
) -> Summary:
    """Work out the numbers of ``schedule``, which is called ``graph`` with ``weights``.

    num_params : values in a message. value_size : bytes of each.
    """
    sources = schedule.num_sources
    messages = int(sources.sum())
    rho = schedule.rho
    return Summary(
        graph=graph,
        weights=weights,
        nodes=schedule.num_agents,
        edges=messages if schedule.directed else messages // 2,
        directed=schedule.directed,
        degree_min=int(sources.min()),
        degree_max=int(sources.max()),
        degree_mean=messages / schedule.num_agents,
        diameter=diameter(schedule),
        period=schedule.period,
        rho=rho,
        rho_per_round=rho ** (1 / schedule.period),
        spectral_gap=schedule.spectral_gap,
        rounds_to_halve=schedule.rounds_to_halve,
        messages_per_round=messages,
        bytes_per_round=messages * num_params * value_size,
        digest=schedule.digest,
    )


def diameter(schedule: Topology) -> int | None:
    """Return the longest shortest path in hops; None if the graph varies or is too large."""
    if not isinstance(schedule, Static):
        return None
    matrix = schedule.matrix
    if not isinstance(matrix, MixingMatrix):
        return min(1, matrix.num_agents - 1)
    n = matrix.num_agents
    if n * matrix.weights.nnz > MAX_DIAMETER_WORK:
        return None
    longest = 0.0
    for start in range(0, n, 256):
        block = np.arange(start, min(start + 256, n))
        longest = max(longest, dijkstra(matrix.weights, indices=block, unweighted=True).max())
    return int(longest)
