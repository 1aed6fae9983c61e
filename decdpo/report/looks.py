"""One colour and marker for every name, the same in every panel of a figure.

A graph has the same look in all figures. Other names take what is left of the looks, in order of
appearance in the figure. There are 130 of them, so that many series stay apart as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#882255",
    "#000000",
    "#332288",
    "#661100",
)
"""The palette of Okabe and Ito, and dark ones of Tol's: told apart also by the colour-blind."""

MARKERS = "osD^vPX*<>hpd"

GRAPHS = (
    "ring",
    "exponential",
    "torus",
    "complete",
    "star",
    "path",
    "hypercube",
    "one_peer_exponential",
    "random_regular",
    "two_clusters",
    "random_matching",
    "erdos_renyi",
    "small_world",
    "exponential_undirected",
    "file",
)
"""Graphs in the order of their looks: those that are shown together most often come first."""


@dataclass(frozen=True)
class Look:
    """How a series is drawn: a colour, and one character for its marker."""

    colour: str
    marker: str

    @classmethod
    def number(cls, k: int) -> "Look":
        """Return the k-th look; the first 130 are all different, the first ten in their colours."""
        lap = k // len(COLOURS)
        return cls(COLOURS[k % len(COLOURS)], MARKERS[(k + lap) % len(MARKERS)])


def subject(label: str) -> str:
    """Return what a label is about: the graph of "DecDPO ring", else the whole label."""
    last = label.removeprefix("DecDPO ")
    return last if last in GRAPHS else label


def looks(subjects: Iterable[str]) -> dict[str, Look]:
    """Return a look for each of the ``subjects`` of a figure, in order of appearance."""
    wanted = list(dict.fromkeys(subjects))
    taken = {name: GRAPHS.index(name) for name in wanted if name in GRAPHS}
    spare = (k for k in range(len(wanted) + len(GRAPHS)) if k not in set(taken.values()))
    return {name: Look.number(taken[name] if name in taken else next(spare)) for name in wanted}
