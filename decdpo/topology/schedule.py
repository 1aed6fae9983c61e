"""Schedules: which mixing weights apply in which round, the same in every process."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from decdpo.errors import TopologyError
from decdpo.topology.files import holds_weights, read_weights
from decdpo.topology.graphs import make_graph
from decdpo.topology.mixing import TOLERANCE, CompleteMatrix, MixingMatrix, require_connected
from decdpo.topology.names import (
    DIRECTED,
    GRAPHS,
    MAX_AGENTS,
    TIME_VARYING,
    WEIGHTS,
    options_used,
    weights_allowed,
)
from decdpo.topology.row import Mixing, Row, Schedule
from decdpo.topology.varying import (
    OnePeerExponential,
    RandomMatching,
    rounds_to_halve,
    text_digest,
)
from decdpo.topology.weights import RULES, from_weights
from decdpo.topology.weights import pairs as pair_weights


class Topology(Schedule, Protocol):
    """A schedule on a graph, with what theory and reports want to know of it.

    The distance to consensus is sqrt(sum_i ||x_i - mean||^2); for a random schedule its contraction
    is meant in the root of the mean square.
    """

    @property
    def num_agents(self) -> int:
        """The number of agents n."""
        ...

    @property
    def period(self) -> int:
        """Rounds after which the weights repeat; 1 if they never change or are random."""
        ...

    @property
    def directed(self) -> bool:
        """Whether in some round an agent receives from another that it does not send to."""
        ...

    @property
    def symmetric(self) -> bool:
        """Whether every round's matrix is symmetric."""
        ...

    @property
    def doubly_stochastic(self) -> bool:
        """Whether rows sum to one as well as columns; plain gossip needs it."""
        ...

    @property
    def rho(self) -> float:
        """Factor by which one period contracts the distance to consensus."""
        ...

    @property
    def spectral_gap(self) -> float:
        """1 - rho, precise also where it is tiny."""
        ...

    @property
    def rounds_to_halve(self) -> int | None:
        """Rounds that surely halve the distance to consensus; None if none do."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, equal on processes that mix alike."""
        ...

    @property
    def num_sources(self) -> np.ndarray:
        """From how many neighbours each agent receives in a round, (n,) int64."""
        ...


class Static:
    """The same matrix in every round.

    rule : that made its weights, see ``weights.RULES``. pairs : of the agents, (n,), of which the
    rule "pairs" made them; else empty.
    """

    period = 1

    def __init__(
        self, matrix: MixingMatrix | CompleteMatrix, rule: str = "", pairs: Sequence[int] = ()
    ) -> None:
        self.matrix = matrix
        self.rule = rule
        self.pairs = tuple(pairs)
        self.num_agents = matrix.num_agents
        self.doubly_stochastic = matrix.doubly_stochastic
        self.digest = matrix.digest

    def mixing(self, round: int) -> MixingMatrix | CompleteMatrix:
        """Return the matrix."""
        return self.matrix

    @property
    def directed(self) -> bool:
        """Whether some agent receives from another that it does not send to."""
        return self.matrix.directed

    @property
    def symmetric(self) -> bool:
        """Whether the matrix is symmetric."""
        return self.matrix.symmetric

    @property
    def rho(self) -> float:
        """The matrix's contraction factor."""
        return self.matrix.rho

    @property
    def spectral_gap(self) -> float:
        """1 - rho, precise also where it is tiny."""
        return self.matrix.spectral_gap

    @property
    def rounds_to_halve(self) -> int | None:
        """The smallest t with rho**t <= 1/2."""
        return rounds_to_halve(self.num_agents, self.spectral_gap)

    @property
    def num_sources(self) -> np.ndarray:
        """From how many neighbours each agent receives, (n,) int64."""
        return self.matrix.num_sources


class Averaging:
    """All receive the weighted mean of the participants: what a server computes. O(n) memory.

    Its row is the same for every agent: own weight 0, all participants as sources, no targets; only
    that an agent which does not participate is not ``active``. It is its own schedule. McMahan et
    al., "Communication-efficient learning of deep networks from decentralized data", 2017.

    participants : agent ids, ascending. weights : their weights, summing to 1; None for equal ones.
    Raises ``TopologyError`` if one of these does not hold.
    """

    def __init__(
        self, participants: Sequence[int], weights: Sequence[float] | None = None
    ) -> None:
        ids = tuple(int(i) for i in participants)
        if not ids or ids[0] < 0 or any(a >= b for a, b in zip(ids, ids[1:], strict=False)):
            raise TopologyError(
                f"participants {ids[:6]} are not ascending agent ids", "name each agent once"
            )
        given = [1 / len(ids)] * len(ids) if weights is None else [float(w) for w in weights]
        if len(given) != len(ids) or min(given) < 0 or not abs(sum(given) - 1) <= TOLERANCE:
            raise TopologyError(
                f"{len(given)} averaging weights that sum to {sum(given):.15g} for {len(ids)} "
                "participants",
                "give every participant a weight of at least 0, with sum 1",
            )
        self._row = Row(0.0, ids, tuple(given), ())
        self._others = replace(self._row, active=False)
        self._members = frozenset(ids)

    @property
    def rho(self) -> None:
        """None: no graph decides how fast agents agree."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of participants and weights."""
        ids, given = self._row.sources, list(self._row.weights)
        return text_digest(f"averaging of {ids} with weights {given!r}")

    def row(self, agent: int) -> Row:
        """Return the row of all participants, or that of all others."""
        return self._row if agent in self._members else self._others

    def mixing(self, round: int) -> "Averaging":
        """Return itself: the same in every round."""
        return self


class Isolated:
    """No agent has a neighbour: the schedule of agents that train alone."""

    digest = text_digest("isolated agents")

    @property
    def rho(self) -> None:
        """None: agents without neighbours never agree."""

    def row(self, agent: int) -> Row:
        """Return a row without neighbours."""
        return Row(1.0, (), (), ())

    def mixing(self, round: int) -> "Isolated":
        """Return itself: the same in every round."""
        return self


def round_weights(mixing: Mixing, num_agents: int) -> csr_array:
    """Return the matrix (n, n) that the rows of one round make up."""
    rows = [mixing.row(i) for i in range(num_agents)]
    i = np.repeat(np.arange(num_agents), [1 + len(r.sources) for r in rows])
    j = [k for agent, r in enumerate(rows) for k in (agent, *r.sources)]
    w = [v for r in rows for v in (r.own, *r.weights)]
    matrix = csr_array((np.array(w), (i, np.array(j))), shape=(num_agents, num_agents))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def require_connected_union(
    schedule: Schedule, num_agents: int, rounds: int, first: int = 0
) -> None:
    """Raise ``TopologyError`` unless the links of ``rounds`` rounds connect all agents.

    A time-varying schedule reaches consensus only if every such window, from round ``first`` on,
    is strongly connected. The message names the components.
    """
    union = csr_array((num_agents, num_agents))
    for t in range(first, first + rounds):
        union = csr_array(union + round_weights(schedule.mixing(t), num_agents))
    require_connected(union, f"the union of rounds {first} ... {first + rounds - 1}")


def make_schedule(
    graph: str,
    weights: str,
    num_agents: int,
    *,
    seed: int = 0,
    degree: int | None = None,
    probability: float | None = None,
    file: str | Path | None = None,
    push_sum: bool = False,
    pairs: Sequence[int] = (),
) -> Topology:
    """Return the schedule of a graph and a weight rule, by name (``names.GRAPHS``, ``WEIGHTS``).

    Parameters
    ----------
    num_agents : n. seed : of random graphs; others ignore it. degree, probability, file : options
        of some graphs (``names.options_used``); None for the graph's default.
    push_sum : whether the algorithm can do with column-stochastic weights. pairs : training pairs
        of the agents, (n,), for the rule of that name.

    Raises ``TopologyError`` for an unknown name, a combination that is not sound, an option that
    the graph would ignore, or a graph or matrix on which the agents could not reach consensus.
    """
    _check_names(graph, weights, num_agents)
    _check_options(graph, weights, degree=degree, probability=probability, file=file)
    if weights == "push" and not push_sum:
        raise TopologyError(
            "push weights are only column-stochastic: this algorithm would drift from the average",
            "use uniform or metropolis weights, or an algorithm with push-sum",
        )
    if graph == "one_peer_exponential":
        return OnePeerExponential(num_agents)
    if graph == "random_matching":
        return RandomMatching(num_agents, seed)
    weights = chosen_rule(graph, weights, file, push_sum)
    if graph == "complete" and weights not in ("file", "pairs"):
        own = 1 / num_agents
        return Static(
            CompleteMatrix(num_agents, (1 + own) / 2 if weights == "lazy" else own), weights
        )
    links = make_graph(
        graph, num_agents, seed=seed, degree=degree, probability=probability, file=file
    )
    if weights == "file":
        assert file is not None
        given = read_weights(file, num_agents)
        return Static(from_weights(given, links, str(file), push_sum=push_sum))
    if weights == "pairs":
        if len(pairs) != num_agents:
            raise TopologyError(
                f"weights = 'pairs' are of {len(pairs)} numbers of pairs, for {num_agents} agents",
                "choose other weights where no shards are at hand",
            )
        return Static(pair_weights(links, pairs), weights, pairs)
    return Static(RULES[weights](links), weights)


def chosen_rule(
    graph: str, weights: str, file: str | Path | None = None, push_sum: bool = False
) -> str:
    """Return the rule that ``weights`` stands for: what ``auto`` means for ``graph``."""
    if weights != "auto":
        return weights
    if graph == "file" and file and holds_weights(file):
        return "file"
    if graph in TIME_VARYING or (graph in DIRECTED and not push_sum):
        return "uniform"
    return "push" if push_sum else "metropolis"


def _check_names(graph: str, weights: str, num_agents: int) -> None:
    for key, name, valid in (("graph", graph, GRAPHS), ("weights", weights, WEIGHTS)):
        if name not in valid:
            near = get_close_matches(name, valid, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TopologyError(
                f"{key} = {name!r} is unknown", f"{hint}choose from {', '.join(valid)}"
            )
    if num_agents < 1:
        raise TopologyError(f"{num_agents} agents are no topology", "take at least one agent")
    if num_agents > MAX_AGENTS:
        raise TopologyError(
            f"{num_agents} agents are too many for a graph", f"take at most {MAX_AGENTS}"
        )
    if weights not in weights_allowed(graph):
        why = (
            "brings its own weights (1/2 and 1/2)" if graph in TIME_VARYING else "is directed"
        )
        raise TopologyError(
            f"weights = {weights!r} do not suit graph = {graph!r}, which {why}",
            f"choose from {', '.join(weights_allowed(graph))}",
        )


def _check_options(graph: str, weights: str, **given: object) -> None:
    used = options_used(graph, weights)
    for key, value in given.items():
        if value is not None and key not in used:
            raise TopologyError(
                f"{key} = {value} would be ignored: graph = {graph!r} with weights = {weights!r} "
                f"uses {' and '.join(used) or 'no option'}",
                f"delete {key}",
            )
    if "file" in used and given["file"] is None:
        key = "graph" if graph == "file" else "weights"
        raise TopologyError(f"{key} = 'file', but no file is named", "name it by the key 'file'")
