"""The parts of the page that need no script: tables and bars."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from decdpo.report.chosen import explain_chosen, last_tenth
from decdpo.report.compare import COLUMNS, NOISY
from decdpo.report.page.charts import histogram, parts_of
from decdpo.report.page.model import Shown
from decdpo.timing import PARTS

TIMES = (
    '<p class="note">least and most are of the processes that took least and most between two '
    "records, added up over the records.</p>"
)
MOST_STARTS = 8
"""Starts of a run whose commands are listed: the first one and the newest."""

ROWS_WITHOUT_SCRIPT = 12
"""Records of a run in the table for browsers without scripts."""


def chip(k: int, text: str) -> str:
    """Return a run's name beside a spot of its colour; k : number of the run."""
    return f'<span class="chip"><i class="spot c{k % 8}"></i>{escape(text)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table; cells are HTML already. kind : its class."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def summary(runs: Sequence[Shown]) -> str:
    """Return the last figures of every run."""
    head = ["run", "method", "state", "agents", "round", *(title for _, title in COLUMNS),
            "MB sent", "time"]  # fmt: skip
    rows = []
    for k, run in enumerate(runs):
        found = run.facts.to_json()
        values = [(found["last_tenth"] if key in NOISY else found)[key] for key, _ in COLUMNS]
        rows.append(
            [chip(k, run.name), escape(run.facts.what), escape(run.state),
             f"{run.facts.agents:,}", f"{found['round']:,} of {run.rounds:,}",
             *map(number, values), f"{found['bytes'] / 1e6:,.1f}", seconds(found["seconds"])]
        )  # fmt: skip
    return table(head, rows, "figures")


def rewards(runs: Sequence[Shown]) -> str:
    """Return a sentence on the rewards of each run."""
    items = (
        f"<li>{chip(k, run.name)}: {escape(explain_chosen(last_tenth(run.records)))}.</li>"
        for k, run in enumerate(runs)
    )
    return f'<ul class="plain">{"".join(items)}</ul>'


def distribution(runs: Sequence[Shown]) -> str:
    """Return the agents' held-out accuracies at the end as an SVG histogram."""
    found = histogram(runs)
    if found is None:
        return ""
    edges, counts = found
    wide, high, low = 640.0, 150.0, 22.0
    most = max(int(c.max()) for c in counts) or 1
    xs = (edges - edges[0]) / max(float(edges[-1] - edges[0]), 1e-12) * wide
    parts = []
    for k, count in enumerate(counts):
        ys = high - count / most * (high - 12)
        corners = "".join(
            f"L{a:.1f},{y:.1f}L{b:.1f},{y:.1f}" for a, b, y in zip(xs, xs[1:], ys, strict=False)
        )
        parts.append(f'<path class="bars c{k % 8}" d="M0,{high}{corners}L{wide},{high}"/>')
    ticks = np.linspace(edges[0], edges[-1], 5)
    for t, value in enumerate(ticks):
        anchor = ("start", "middle", "middle", "middle", "end")[t]
        parts.append(f'<text x="{wide * t / 4:g}" y="{high + 16}" text-anchor="{anchor}">'
                     f"{value:.3f}</text>")  # fmt: skip
    return (
        '<figure class="card"><h3>Held-out accuracy of the agents, last record</h3>'
        f'<svg class="histogram" viewBox="-2 0 {wide + 4:g} {high + low:g}" role="img" '
        'aria-label="histogram">'
        + "".join(parts)
        + f"</svg><figcaption>agents by share of pairs; the highest bar is {most:,}"
        "</figcaption></figure>"
    )


def times(runs: Sequence[Shown]) -> str:
    """Return where the time went: a bar and a table for every run."""
    found = []
    for k, run in enumerate(runs):
        parts = parts_of(run)
        total = sum(mean for _, mean, _ in parts.values())
        if not total:
            found.append(f"<p>{chip(k, run.name)}: its records do not say where the time went.</p>")
            continue
        bar = "".join(
            f'<i class="p{p}" style="width:{100 * parts[part][1] / total:.2f}%" '
            f'title="{part} {parts[part][1] / total:.1%}"></i>'
            for p, part in enumerate(PARTS)
        )
        rows = [
            [f'<span class="chip"><i class="spot p{p}"></i>{part}</span>',
             *(number(v) for v in parts[part]), f"{parts[part][1] / total:.1%}"]
            for p, part in enumerate(PARTS)
        ]  # fmt: skip
        head = ["part", "least, s", "mean, s", "most, s", "share"]
        found.append(
            f'<div class="card"><h3>{chip(k, run.name)}</h3><div class="bar">{bar}</div>'
            + table(head, rows, "figures narrow")
            + "".join(f'<p class="note">{escape(line)}</p>' for line in _closing(run))
            + "</div>"
        )
    return f'<div class="grid">{"".join(found)}</div>{TIMES}'


def _closing(run: Shown) -> list[str]:
    """Return what the newest start said at its end of its rates, and the advice."""
    lines = list(run.record.get("end", {}).get("table", ()))
    rates = next((k for k, line in enumerate(lines) if line.startswith("other")), len(lines)) + 1
    return [f"newest start: {lines[0]}", *lines[rates:]] if rates <= len(lines) else []


def events(runs: Sequence[Shown]) -> str:
    """Return what befell the runs, in order of rounds; empty if nothing did."""
    rows = [
        [chip(k, run.name), f"{event.round:,}", escape(event.kind), escape(event.text)]
        for k, run in enumerate(runs)
        for event in run.events
    ]
    return table(["run", "round", "event", "what"], rows) if rows else ""


def differences(runs: Sequence[Shown]) -> str:
    """Return the keys of the configuration that are not equal in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = []
    for key in keys:
        values = [run.config.get(key) for run in runs]
        if any(value != values[0] for value in values):
            cells = ("–" if v is None else f"<code>{escape(text(v))}</code>" for v in values)
            rows.append([f"<code>{escape(key)}</code>", *cells])
    if not rows:
        return "<p>The configurations are the same.</p>"
    return table(["key", *(chip(k, run.name) for k, run in enumerate(runs))], rows)


def text(value: Any) -> str:
    """Return a value of the configuration as TOML would have it, nearly."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def reproduce(k: int, run: Shown) -> str:
    """Return what it takes to have run ``k`` again: command, versions, digests, configuration."""
    record = run.record
    versions = ", ".join(map(" ".join, record.get("versions", {}).items()))
    facts = {
        **_starts(record),
        "versions": escape(versions or "–"),
        "digest": _digest(run),
        **{f"{name.removesuffix('_digest')} digest": _code(record.get("names", {}).get(name))
           for name in ("data", "model", "policy_digest", "topology")
           if record.get("names", {}).get(name)},
    }  # fmt: skip
    rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in facts.items())
    agents = "\n".join(run.agent_digests)
    listed = f"<details><summary>digest of every agent</summary><pre>{agents}</pre></details>"
    return (
        f'<div class="card"><h3>{chip(k, run.name)}</h3><div class="wide"><table class="facts">'
        f"{rows}</table></div>{listed if agents else ''}<details><summary>config.toml</summary>"
        f"<pre>{escape(run.toml)}</pre></details></div>"
    )


def _starts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what was run, where and when: of a run that was resumed, every start."""
    starts = list(record.get("starts") or [record])
    if len(starts) == 1:
        return {
            "command": _code(record.get("command")),
            "in": _code(record.get("folder")),
            "processes": escape(str(record.get("processes", "–"))),
            "started": escape(str(record.get("started", "–"))),
        }
    found = {}
    for k, start in enumerate(starts):
        if 0 < k <= len(starts) - MOST_STARTS:
            found["…"] = f"{len(starts) - MOST_STARTS:,} more starts"
            continue
        folder = start.get("folder", record.get("folder"))
        found[f"start {k + 1}"] = (
            f"{_code(start.get('command'))} in {_code(folder)}, processes: "
            f"{escape(str(start.get('processes', '–')))}, {escape(str(start.get('started', '–')))}"
        )
    return found


def _digest(run: Shown) -> str:
    if run.saved is None:
        return escape(run.digest)
    command = f"decdpo checkpoint digest {shlex.quote(str(run.facts.folder))} | sha256sum"
    digest, made_by = (f"<code>{escape(code)}</code>" for code in (run.digest, command))
    return f"{digest} after round {run.saved:,}: {made_by}"


def _code(value: object) -> str:
    return f"<code>{escape(str(value))}</code>" if value else "–"


def without_script(runs: Sequence[Shown]) -> str:
    """Return some of the records of every run as a table, for browsers without scripts."""
    head = ["run", "round", *(title for _, title in COLUMNS)]
    rows = []
    for k, run in enumerate(runs):
        count = len(run.records)
        picked = sorted({round(x) for x in np.linspace(0, count - 1, ROWS_WITHOUT_SCRIPT)})
        for record in (run.records[p] for p in picked):
            rows.append([chip(k, run.name), f"{record['round']:,}",
                         *(number(record.get(key)) for key, _ in COLUMNS)])  # fmt: skip
    return (
        "<p>The charts need a browser with scripts and DecompressionStream (of 2023 or newer). "
        "Some of the records:</p>" + table(head, rows, "figures")
    )


def number(value: float | None) -> str:
    """Return a number to four digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def seconds(value: float) -> str:
    """Return a span of time in words."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{value:.1f} s"


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration by section.key."""
    return {
        f"{section}.{key}": value
        for section, keys in sections.items()
        for key, value in keys.items()
    }
