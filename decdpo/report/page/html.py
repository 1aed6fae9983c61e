"""The page as a whole: one file, which asks for nothing else."""

import base64
import gzip
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from decdpo.report.page import graph, tables
from decdpo.report.page.charts import (
    AGREEMENT,
    LEARNING,
    MOST_SINGLE,
    REWARDS,
    SPEED,
    Chart,
    lines_of,
    numbers,
    others,
)
from decdpo.report.page.model import Shown

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
"""What the browser lets the page do: run and style what it holds, and reach nothing."""

BANNER = "/* uPlot 1.6.32\n\n{licence}*/\n"


def page(runs: Sequence[Shown], made: str) -> str:
    """Return the HTML document of the ``runs``. made : when, in words."""
    further = others(runs)
    charts = [*LEARNING, *REWARDS, *AGREEMENT, *SPEED, *further]
    data = [numbers(run, charts) for run in runs]
    drawn = {c.key: kept for c in charts if (kept := lines_of(c, data))}
    content = {
        "runs": data,
        "charts": [
            {"key": c.key, "unit": c.unit, "log": c.log,
             "lines": [[key, label] for key, label in c.lines if key in drawn[c.key]]}
            for c in charts if c.key in drawn
        ],
    }  # fmt: skip
    names = ", ".join(run.name for run in runs)
    body = [
        _head(runs, made),
        _section("figures", "Last figures", tables.summary(runs) + _tenth()),
        f'<noscript>{tables.without_script(runs)}</noscript><div id="plain"></div>',
        _section("learning", "Learning", _grid(LEARNING, drawn)),
        _section("rewards", "Rewards", tables.rewards(runs) + _grid(REWARDS, drawn)),
        _section("agents", "Agents", _agents(runs, data)),
        _section("agreement", "Agreement", _grid(AGREEMENT, drawn) + _predictions(runs)),
        _section("further", "Further measures", _grid(further, drawn)),
        _section("graph", "Graph", _graphs(runs)),
        _section("time", "Time", _grid(SPEED, drawn) + tables.times(runs)),
        _section("events", "Restarts and faults", tables.events(runs)),
        _section("differences", "Configuration differences",
                 tables.differences(runs) if len(runs) > 1 else ""),
        _section("reproduce", "To have it again", _reproduce(runs)),
    ]  # fmt: skip
    packed = gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0)
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(names)} · decdpo</title>",
            f"<style>{_asset('uplot/uPlot.min.css')}\n{_asset('page.css')}</style></head><body>",
            *filter(None, body),
            f'<script type="text/plain" id="data">{base64.b64encode(packed).decode()}</script>',
            f"<script>{_uplot()}</script>",
            f"<script>{_asset('page.js')}</script>",
            "</body></html>",
        ]
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _uplot() -> str:
    """Return the library under its licence, without its first line, which has an address."""
    _, _, code = _asset("uplot/uPlot.iife.min.js").partition("*/")
    return BANNER.format(licence=_asset("uplot/LICENSE").rstrip() + "\n") + code


def _head(runs: Sequence[Shown], made: str) -> str:
    chips = "".join(
        f'<label><input type="checkbox" checked data-run="{k}">{tables.chip(k, run.name)}</label>'
        for k, run in enumerate(runs)
    )
    axes = "".join(
        f'<button type="button" data-axis="{axis}">{label}</button>'
        for axis, label in (("rounds", "rounds"), ("seconds", "time"), ("megabytes", "MB sent"))
    )
    title = escape(runs[0].name) if len(runs) == 1 else f"{len(runs)} runs"
    live = any(run.state == "training" for run in runs)
    note = "; made while training goes on" if live else ""
    return (
        f"<header><h1>{title}</h1><p class='made'>decdpo report, {escape(made)}{note}</p></header>"
        f'<nav><span class="runs">{chips}</span><span class="axes">over {axes}</span>'
        '<button type="button" id="theme" title="light or dark">◐</button></nav>'
    )


def _section(key: str, title: str, content: str) -> str:
    """Return a section, empty if it has no content."""
    return f'<section id="{key}"><h2>{title}</h2>{content}</section>' if content else ""


def _tenth() -> str:
    return (
        '<p class="note">loss, chosen, margin and saturated are of the training batches: means '
        "over the last tenth of the rounds. own acc. and mean acc.: held-out accuracy of the "
        "agents' own models and of the average model.</p>"
    )


def _grid(charts: Sequence[Chart], drawn: dict[str, list[str]]) -> str:
    found = "".join(
        f'<figure class="card chart" data-chart="{c.key}"><h3>{escape(c.title)}</h3>'
        '<div class="plot"></div>'
        + (f"<figcaption>{escape(c.note)}</figcaption>" if c.note else "")
        + "</figure>"
        for c in charts
        if c.key in drawn
    )
    return f'<div class="grid">{found}</div>' if found else ""


def _agents(runs: Sequence[Shown], data: Sequence[dict[str, object]]) -> str:
    if not any("spread" in run for run in data):
        return ""
    few = all(run.agents <= MOST_SINGLE for run in runs)
    if few:
        each = (
            '<h3>Held-out accuracy by agent</h3><div id="multiples"></div>'
            '<p class="note">All have the same axes, <span id="axes">of one scale</span>; numbers '
            "are those of the last record.</p>"
        )
    else:
        each = (
            f'<p class="note">With more than {MOST_SINGLE} agents their distribution is drawn, not '
            "a curve for each.</p>"
        )
    spread = (
        '<figure class="card chart" data-chart="spread"><h3>Held-out accuracy, spread over the '
        'agents</h3><div class="plot"></div><figcaption>median, band of the middle half, and band '
        "from the 5th to the 95th percentile</figcaption></figure>"
    )
    last = "" if few else tables.distribution(runs)
    return f'<div class="grid">{spread}{last}</div>{each}'


def _predictions(runs: Sequence[Shown]) -> str:
    missing = [
        f"<li>{tables.chip(k, run.name)}: no prediction: {escape(run.no_prediction)}.</li>"
        for k, run in enumerate(runs)
        if run.no_prediction
    ]
    return f'<ul class="plain note">{"".join(missing)}</ul>' if missing else ""


def _graphs(runs: Sequence[Shown]) -> str:
    found, shaded = [], False
    for k, run in enumerate(runs):
        drawing, lines = graph.drawn(run)
        shaded = shaded or bool(drawing)
        said = "".join(f"<li>{escape(line)}</li>" for line in lines)
        found.append(
            f'<figure class="card"><h3>{tables.chip(k, run.name)}</h3>{drawing}'
            f'<ul class="plain note">{said}</ul></figure>'
        )
    scale = "".join(f'<i class="w{level}"></i>' for level in range(graph.LEVELS))
    key = (
        f'<p class="note shades">waited for: none {scale} longest of the run. Links and agents '
        "that are drawn one by one say how much when pointed at.</p>"
    )
    return f'<div class="grid">{"".join(found)}</div>{key if shaded else ""}'


def _reproduce(runs: Sequence[Shown]) -> str:
    return f'<div class="grid">{"".join(tables.reproduce(k, r) for k, r in enumerate(runs))}</div>'
