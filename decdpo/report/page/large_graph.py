"""A graph of too many agents to draw each: its links by blocks of agents, and how far news travels.

The first picture is the matrix of links, agents in order of their ids and as many blocks of them as
can be told apart; a cell is the darker the more links it holds. The second says how many agents
are at most so many links away from one, which is how many rounds a message needs to reach them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from decdpo.report.page.model import Links

BLOCKS = 32
"""Blocks of agents in a row of the matrix."""

SOURCES = 16
"""Agents from which distances are looked at, evenly spaced."""

POINTS = 100
"""Points of a curve at most."""

CELL = 13
SHADES = (0.15, 0.35, 0.6, 0.9)
LEFT, TOP, WIDTH, HEIGHT = 44, 10, 416, 150


@dataclass(frozen=True)
class Reach:
    """How many agents are at most 0, 1, ... K links away, as shares (K + 1,) of all.

    mean, least, most : over the agents looked at. half : links to half of all agents from the mean
    one, None if half are never reached. cut_off : agents that some of those looked at never reach.
    """

    mean: np.ndarray
    least: np.ndarray
    most: np.ndarray
    half: int | None
    cut_off: int

    @classmethod
    def of(cls, links: Links) -> "Reach":
        """Measure it from ``SOURCES`` agents of ``links``."""
        ends = np.array(list(links.pairs), dtype=np.int64).reshape(-1, 2)
        shape = (links.agents, links.agents)
        matrix = csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=shape)
        sources = np.unique(np.linspace(0, links.agents - 1, SOURCES).astype(int))
        away = dijkstra(matrix, unweighted=True, indices=sources)
        never = np.isinf(away)
        last = int(away[~never].max())
        counts = [np.bincount(row[~out].astype(int), minlength=last + 1)
                  for row, out in zip(away, never)]  # fmt: skip
        shares = np.cumsum(counts, axis=1) / links.agents
        mean = shares.mean(axis=0)
        enough = np.flatnonzero(mean >= 0.5)
        half = int(enough[0]) if enough.size else None
        cut_off = int(never.any(axis=0).sum())
        return cls(mean, shares.min(axis=0), shares.max(axis=0), half, cut_off)


def densities(links: Links) -> np.ndarray:
    """Return the share of the possible links that exist, (B, B): from block (column) to block."""
    count = min(BLOCKS, links.agents)
    block = np.arange(links.agents) * count // links.agents
    ends = np.array(list(links.pairs), dtype=np.int64).reshape(-1, 2)
    found = np.zeros((count, count))
    np.add.at(found, (block[ends[:, 1]], block[ends[:, 0]]), 1.0)
    sizes = np.bincount(block, minlength=count)
    possible = np.outer(sizes, sizes) - np.diag(sizes)
    return found / np.maximum(possible, 1)


def drawn(links: Links, waits: Mapping[tuple[int, int], int]) -> tuple[str, list[str]]:
    """Return both pictures as SVG elements, and what is said below them, a sentence each.

    waits : shade of the waiting, by receiving and sending agent.
    """
    found, reach = densities(links), Reach.of(links)
    return _matrix(links, found, waits) + _curve(links, reach), _words(links, found, reach)


def _words(links: Links, found: np.ndarray, reach: Reach) -> list[str]:
    count = len(found)
    each = -(-links.agents // count)
    if reach.cut_off:
        far = f"{reach.cut_off:,} agents are not reached from every agent"
    else:
        far = f"the farthest is {len(reach.mean) - 1:,} links away"
    half = "never reaches half of all" if reach.half is None else (
        f"is at most {reach.half:,} links from half of all"
    )  # fmt: skip
    return [
        f"{count} by {count} blocks of up to {each:,} agents; the darkest cell holds "
        f"{100 * found.max():.3g}% of its possible links",
        f"an agent, in the mean of {min(SOURCES, links.agents)} looked at, {half}; {far}",
    ]


def _matrix(links: Links, found: np.ndarray, waits: Mapping[tuple[int, int], int]) -> str:
    count, most = len(found), found.max() or 1.0
    levels = np.ceil(len(SHADES) * found / most).astype(int)
    parts = []
    for level, opacity in enumerate(SHADES, 1):
        cells = "".join(_cell(i, j) for i, j in zip(*np.nonzero(levels == level)))
        if cells:
            parts.append(f'<path class="cells" fill-opacity="{opacity}" d="{cells}"/>')
    blocks: dict[tuple[int, int], int] = {}
    for (receiver, sender), level in waits.items():
        key = receiver * count // links.agents, sender * count // links.agents
        blocks[key] = max(blocks.get(key, 0), level)
    for level in sorted(set(blocks.values()) - {0}):
        cells = "".join(_cell(*key) for key, value in blocks.items() if value == level)
        parts.append(f'<path class="w{level}" fill="none" stroke-width="2" d="{cells}"/>')
    side = count * CELL
    last = f"{links.agents - 1:,}"
    name = escape(f"links of {links.agents} agents by blocks")
    return (
        f'<svg class="graph" viewBox="0 0 {LEFT + side + 8} {side + 40}" role="img" '
        f'aria-label="{name}">'
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{side}" height="{side}"/>'
        + "".join(parts)
        + _label(LEFT + CELL, side + 20, "0") + _label(LEFT + side - 2 * CELL, side + 20, last)
        + _label(LEFT + side / 2, side + 32, "sending agent")
        + _label(LEFT / 2, 18, "0") + _label(LEFT / 2, side + 4, last)
        + f'<text transform="translate(12,{side / 2:g}) rotate(-90)">receiving agent</text></svg>'
    )  # fmt: skip


def _cell(row: int, column: int) -> str:
    return f"M{LEFT + CELL * column} {TOP + CELL * row}h{CELL}v{CELL}h-{CELL}z"


def _curve(links: Links, reach: Reach) -> str:
    last = len(reach.mean) - 1
    steps = np.unique(np.linspace(0, last, min(POINTS, last + 1)).astype(int))

    def line(shares: np.ndarray, order: np.ndarray) -> str:
        return " ".join(
            f"{LEFT + WIDTH * step / max(last, 1):.1f},{TOP + HEIGHT * (1 - shares[step]):.1f}"
            for step in order
        )

    band = f"{line(reach.most, steps)} {line(reach.least, steps[::-1])}"
    ticks = "".join(
        _label(LEFT - 20, TOP + HEIGHT * (1 - share), f"{100 * share:g}%") for share in (0, 0.5, 1)
    )
    return (
        f'<svg class="graph" viewBox="0 0 {LEFT + WIDTH + 16} {HEIGHT + 44}" role="img" '
        f'aria-label="share of {links.agents} agents within so many links">'
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>'
        f'<polygon class="band" points="{band}"/>'
        f'<polyline class="reach" points="{line(reach.mean, steps)}"/>{ticks}'
        + _label(LEFT, HEIGHT + 22, "0") + _label(LEFT + WIDTH, HEIGHT + 22, f"{last:,}")
        + _label(LEFT + WIDTH / 2, HEIGHT + 34, "links away; share of agents at most so far")
        + "</svg>"
    )  # fmt: skip


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}">{text}</text>'
