"""The names of graphs and weight rules, and the options each one uses. Imports nothing heavy."""

UNDIRECTED = (
    "ring",
    "path",
    "star",
    "complete",
    "torus",
    "hypercube",
    "exponential_undirected",
    "two_clusters",
    "random_regular",
    "erdos_renyi",
    "small_world",
)
"""Graphs on which neighbours send to each other, the same in every round."""

DIRECTED = ("exponential",)
"""Graphs on which agent i may receive from j although it does not send to j."""

TIME_VARYING = ("one_peer_exponential", "random_matching")
"""Schedules with another graph in every round; they bring their own weights."""

GRAPHS = (*UNDIRECTED, *DIRECTED, *TIME_VARYING, "file")
"""Every value of the key ``graph``; ``file`` reads an edge list or a matrix."""

WEIGHTS = ("auto", "metropolis", "max_degree", "lazy", "uniform", "pairs", "push", "file")
"""Every value of the key ``weights``.

auto : metropolis on undirected graphs, uniform on directed and time-varying ones, and on a graph
from a file the weights that the file holds, metropolis if it holds none. An algorithm with push-sum
takes push in place of metropolis, and on directed graphs. pairs : agents weigh by their numbers of
training pairs.
"""

MAX_AGENTS = 10_000_000
"""More agents than this would take hours and tens of gigabytes: rather a mistyped number."""

_OPTIONS = {
    "random_regular": ("degree",),
    "erdos_renyi": ("probability",),
    "small_world": ("degree", "probability"),
    "file": ("file",),
}

RANDOM = ("random_regular", "erdos_renyi", "small_world", "random_matching")
"""Graphs that depend on the seed."""


def options_used(graph: str, weights: str = "auto") -> tuple[str, ...]:
    """Return which of ``degree``, ``probability`` and ``file`` this graph and rule read.

    Any other one that is given would be ignored, and is therefore refused.
    """
    options = _OPTIONS.get(graph, ())
    if weights == "file" and "file" not in options:
        options = (*options, "file")
    return options


def weights_allowed(graph: str) -> tuple[str, ...]:
    """Return the weight rules that can apply to ``graph``; the graph itself may still refuse one.

    ``uniform`` needs a regular graph, ``file`` a file whose support is the graph, ``push`` an
    algorithm that corrects for column-stochastic weights.
    """
    if graph in TIME_VARYING:
        return ("auto", "uniform")
    if graph in DIRECTED:
        return ("auto", "uniform", "push", "file")
    return WEIGHTS
