"""Pictures of communication graphs."""

from collections.abc import Sequence
from math import ceil, cos, pi, sin, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decdpo.errors import TopologyError
from decdpo.report.canvas import blank, drawing, picture, save
from decdpo.report.looks import COLOURS
from decdpo.topology.analysis import Summary
from decdpo.topology.graphs import torus_shape
from decdpo.topology.schedule import Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_AGENTS = 400
"""More agents than this would be a blot."""

RANDOM_ROUNDS = 3
"""Rounds shown of a schedule that is random and never repeats."""

SUFFIXES = (".png", ".svg", ".pdf")


@picture
def plot(cases: Sequence[tuple[Topology, Summary]], path: str | Path) -> None:
    """Draw one panel per topology into the file ``path`` (.png, .svg or .pdf).

    Lines are links, darker for larger weights, with arrows where they go one way only. A
    time-varying schedule shows the rounds of a period in colours, a random one its first three.
    Raises ``TopologyError`` for more than 400 agents or another suffix, ``EnvironmentFault`` where
    matplotlib is missing or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise TopologyError(f"{path}: unknown kind of picture", f"end it in {', '.join(SUFFIXES)}")
    for _, summary in cases:
        if summary.nodes > MAX_AGENTS:
            raise TopologyError(
                f"{summary.graph} of {summary.nodes} agents is too large to draw",
                f"draw at most {MAX_AGENTS} agents",
            )
    columns = ceil(sqrt(len(cases)))
    rows = ceil(len(cases) / columns)
    with drawing() as matplotlib:
        figure = blank(matplotlib, 4.6 * columns, 5.0 * rows)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes:
            ax.set_axis_off()
        for ax, (schedule, summary) in zip(axes, cases, strict=False):
            _panel(ax, schedule, summary)
        save(figure, path, dpi=150)


def _panel(ax: "Axes", schedule: Topology, summary: Summary) -> None:
    n = summary.nodes
    at = positions(summary.graph, n)
    shown = RANDOM_ROUNDS if summary.graph == "random_matching" else schedule.period
    for t in range(shown):
        _links(ax, schedule, t, at, COLOURS[t % len(COLOURS)], shown > 1)
    dot = 320.0 if n <= 24 else 9000 / n if n <= 64 else 4000 / n
    ax.scatter(at[:, 0], at[:, 1], s=dot, color="white", edgecolors="#222222", zorder=3)
    if n <= 64:
        size = max(5.0, 11 - n / 8)
        for agent, (x, y) in enumerate(at):
            ax.text(x, y, str(agent), ha="center", va="center", fontsize=size, zorder=4)
    if shown > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, frameon=False)
    rate = "contraction in a period" if schedule.period > 1 else "contraction in a round"
    ax.set_title(
        f"{summary.graph.replace('_', ' ')}, {n} agents, {summary.weights.replace('_', ' ')} "
        f"weights\n{rate}: {summary.rho:.4g}, gap {summary.spectral_gap:.3g}",
        fontsize=10,
    )
    ax.set_aspect("equal")
    ax.margins(0.12)


def _links(
    ax: "Axes", schedule: Topology, round: int, at: np.ndarray, colour: str, named: bool
) -> None:
    """Draw the links of one round: a line for a mutual one, an arrow for another."""
    mixing = schedule.mixing(round)
    rows = [mixing.row(agent) for agent in range(len(at))]
    received = [dict(zip(row.sources, row.weights, strict=True)) for row in rows]
    largest = max((w for h in received for w in h.values()), default=1.0)
    label = f"round {round}" if named else None
    width = 1.4 if sum(map(len, received)) < 500 else 0.6
    for i, sources in enumerate(received):
        for j, weight in sources.items():
            mutual = i in received[j]
            if mutual and i > j:
                continue
            alpha = 0.25 + 0.65 * weight / largest
            if mutual:
                ax.plot(*at[[i, j]].T, color=colour, alpha=alpha, lw=width, zorder=1, label=label)
            else:
                arrow: dict[str, Any] = {
                    "arrowstyle": "-|>", "color": colour, "alpha": alpha, "lw": 0.8 * width,
                    "shrinkA": 9, "shrinkB": 9, "connectionstyle": "arc3,rad=0.08",
                }  # fmt: skip
                ax.annotate("", xy=at[i], xytext=at[j], arrowprops=arrow, zorder=1)
                if label:
                    ax.plot([], [], color=colour, label=label)
            label = None


def positions(graph: str, num_agents: int) -> np.ndarray:
    """Return where the agents are drawn, (n, 2): a grid for a torus, else circles."""
    n = num_agents
    if graph == "torus":
        rows, columns = torus_shape(n)
        # a slight bend keeps the wrap-around links from hiding behind the others
        return np.array(
            [
                (c + 0.25 * (r / max(rows - 1, 1) - 0.5) ** 2 * 4,
                 -r - 0.25 * (c / max(columns - 1, 1) - 0.5) ** 2 * 4)
                for r in range(rows) for c in range(columns)
            ]
        )  # fmt: skip
    if graph == "path":
        return _circle(n, start=1.5 * pi - 0.3, turn=2 * pi - 0.6)
    if graph == "star":
        return np.vstack([np.zeros((1, 2)), _circle(n - 1)])
    if graph == "two_clusters" and n > 1:
        half = (n + 1) // 2
        right = _circle(n - half) * [-1, 1] + [2.8, 0]
        return np.vstack([_circle(half), right])
    return _circle(n, start=pi / 2)


def _circle(n: int, start: float = 0.0, turn: float = 2 * pi) -> np.ndarray:
    """Return n points clockwise on the unit circle, (n, 2); open unless ``turn`` is full."""
    steps = n if turn == 2 * pi else n - 1
    angles = [start - turn * k / max(steps, 1) for k in range(n)]
    return np.array([(cos(a), sin(a)) for a in angles]).reshape(-1, 2)
