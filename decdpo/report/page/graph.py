"""The graph of a run as SVG: its links with what they carried and how long they were waited for."""

from collections.abc import Mapping, Sequence
from html import escape
from math import hypot
from typing import Any

from decdpo.report.page import large_graph
from decdpo.report.page.model import Links, Shown
from decdpo.report.topology_plot import positions

MOST_DRAWN = 256
"""Agents; a larger graph would be a blot, and is drawn by blocks of agents (``large_graph``)."""

LEVELS = 5
"""Shades of waiting."""

SIDE = 420.0
MARGIN = 26.0


def waited(records: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], float]:
    """Return the recorded seconds that the process of one agent waited for another agent."""
    sums: dict[tuple[int, int], float] = {}
    for record in records:
        for listener, source, seconds in record["system"].get("waits", ()):
            key = (int(listener), int(source))
            sums[key] = sums.get(key, 0.0) + float(seconds)
    return sums


def drawn(run: Shown) -> tuple[str, list[str]]:
    """Return the SVG elements of the run's graph, empty if there is none, and what is said of it
    below, a sentence each."""
    links = run.links
    if links is None:
        return "", [run.no_links] if run.no_links else []
    waits = waited(run.records)
    if links.agents > MOST_DRAWN:
        longest = max(waits.values(), default=0.0)
        shades = {k: _level(s, longest) for k, s in waits.items()}
        picture, blocks = large_graph.drawn(links, shades)
    else:
        picture, blocks = _each(links, waits, run), []
    return picture, [*_words(links), *blocks, *_waits(waits, run)]


def _each(links: Links, waits: Mapping[tuple[int, int], float], run: Shown) -> str:
    """Return a picture of every agent and link."""
    on_links = {(j, i): waits.get((i, j), 0.0) for j, i in links.pairs}
    for_agent = _by_source(waits)
    most = max([*on_links.values(), *for_agent.values()], default=0.0)
    at = _placed(links)
    radius = max(3.0, min(13.0, 150.0 / links.agents**0.75))
    parts = [_link(pair, at, on_links, most, links, radius) for pair in _drawn(links)]
    for agent, (x, y) in enumerate(at):
        parts.append(_agent(agent, x, y, radius, for_agent.get(agent, 0.0), most, run))
    name = escape(f"{links.graph.replace('_', ' ')} of {links.agents} agents")
    side = SIDE + 2 * MARGIN
    return (
        f'<svg class="graph" viewBox="0 0 {side:g} {side:g}" role="img" aria-label="{name}">'
        + "".join(parts)
        + "</svg>"
    )


def _words(links: Links) -> list[str]:
    degrees = [0] * links.agents
    for source, _ in links.pairs:
        degrees[source] += 1
    low, high = min(degrees), max(degrees)
    each = f"{low}" if low == high else f"{low} to {high}"
    said = [
        f"{links.graph.replace('_', ' ')}, {links.agents:,} agents, {len(links.pairs):,} directed "
        f"links, each agent sends to {each}"
    ]
    shares = set(links.pairs.values())
    carried = sorted(share * links.rounds * links.message_bytes for share in shares)
    if carried and carried[-1]:
        least, most = carried[0] / 1e6, carried[-1] / 1e6
        amount = f"{most:,.4g}" if least == most else f"{least:,.4g} to {most:,.4g}"
        said.append(f"a link carried {amount} MB in {links.rounds:,} rounds")
    return said


def _waits(waits: Mapping[tuple[int, int], float], run: Shown) -> list[str]:
    longest = sorted(waits.items(), key=lambda item: -item[1])[:3]
    if longest:
        text = ", ".join(
            f"{seconds:,.3g} s by the process of agent {i} for agent {j}"
            for (i, j), seconds in longest
        )
        return [f"longest waits in all: {text}"]
    if any("parts" in r["system"] for r in run.records):
        return ["no wait for a single agent was recorded"]
    return []


def _by_source(waits: Mapping[tuple[int, int], float]) -> dict[int, float]:
    sums: dict[int, float] = {}
    for (_, source), seconds in waits.items():
        sums[source] = sums.get(source, 0.0) + seconds
    return sums


def _placed(links: Links) -> list[tuple[float, float]]:
    """Return where each agent is, within the picture."""
    at = positions(links.graph, links.agents)
    low, high = at.min(axis=0), at.max(axis=0)
    scale = SIDE / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    half = SIDE / 2 + MARGIN
    return [(half + (x - middle[0]) * scale, half - (y - middle[1]) * scale) for x, y in at]


def _drawn(links: Links) -> list[tuple[int, int]]:
    """Return the links, of mutual ones one direction."""
    return [(j, i) for j, i in links.pairs if j < i or (i, j) not in links.pairs]


def _link(
    pair: tuple[int, int],
    at: Sequence[tuple[float, float]],
    waits: Mapping[tuple[int, int], float],
    most: float,
    links: Links,
    radius: float,
) -> str:
    (j, i), mutual = pair, (pair[1], pair[0]) in links.pairs
    (x0, y0), (x1, y1) = at[j], at[i]
    long = max(hypot(x1 - x0, y1 - y0), 1e-9)
    lines, ends = [], [(j, i), (i, j)] if mutual else [(j, i)]
    for source, target in ends:
        share = links.pairs[source, target]
        carried = share * links.rounds * links.message_bytes / 1e6
        lines.append(
            f"{source} to {target}: {carried:,.4g} MB, {waits.get((source, target), 0.0):,.3g} s"
        )
    seconds = max(waits.get(end, 0.0) for end in ends)
    level = _level(seconds, most)
    width = 0.8 + 1.8 * links.pairs[j, i] if links.agents <= 64 else 0.7
    title = f"<title>{escape('; '.join(lines))} waited</title>"
    arrow = ""
    if not mutual:
        ux, uy = (x1 - x0) / long, (y1 - y0) / long
        tx, ty = x1 - ux * (radius + 1), y1 - uy * (radius + 1)
        wing = min(7.0, radius)
        corners = [
            (tx, ty),
            (tx - ux * wing - uy * wing / 2, ty - uy * wing + ux * wing / 2),
            (tx - ux * wing + uy * wing / 2, ty - uy * wing - ux * wing / 2),
        ]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        arrow = f'<polygon class="head w{level}" points="{points}"/>'
    return (
        f'<g class="link">{title}<line class="w{level}" x1="{x0:.1f}" y1="{y0:.1f}" '
        f'x2="{x1:.1f}" y2="{y1:.1f}" stroke-width="{width:.1f}"/>{arrow}</g>'
    )


def _agent(
    agent: int, x: float, y: float, radius: float, seconds: float, most: float, run: Shown
) -> str:
    name = run.agent_names[agent] if agent < len(run.agent_names) else ""
    title = f"agent {agent} {name}".strip() + f": others waited {seconds:,.3g} s for it"
    last = next((e for e in reversed(run.events) if agent in e.agents), None)
    gone = label = ""
    if last is not None and last.kind == "lost":
        gone = " gone"
        title += f", lost after round {last.round}"
    if radius >= 7:
        label = f'<text x="{x:.1f}" y="{y:.1f}" font-size="{radius:.1f}">{agent}</text>'
    return (
        f'<g class="agent n{_level(seconds, most)}{gone}"><title>{escape(title)}</title>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>{label}</g>'
    )


def _level(seconds: float, most: float) -> int:
    """Return the shade of a wait: 0 for none, LEVELS - 1 for the longest."""
    if not most or seconds < 1e-3:
        return 0
    return 1 + min(int((LEVELS - 1) * seconds / most), LEVELS - 2)
