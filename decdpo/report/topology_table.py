"""The numbers of topologies as a table for people."""

import math
from collections.abc import Mapping, Sequence

from decdpo.topology.analysis import Summary

_COLUMNS = (
    ("graph", "graph"),
    ("weights", "weights"),
    ("nodes", "agents"),
    ("edges", "edges"),
    ("degrees", "degree"),
    ("diameter", "diameter"),
    ("rho", "rho"),
    ("spectral_gap", "gap"),
    ("rounds_to_halve", "halved after"),
    ("messages_per_round", "messages/round"),
    ("bytes_per_round", "bytes/round"),
)
_TIMES = (
    ("round_seconds", "round"),
    ("thousandth_seconds", "to 1/1000"),
    ("all_reduce_seconds", "all-reduce"),
)


def table(summaries: Sequence[Summary], timed: Sequence[Mapping[str, float]] = ()) -> str:
    """Return an aligned text table, one line per topology.

    timed : the seconds of each on a network, as of ``theory.cost.Timed``, or of none.
    """
    lines = [[title for _, title in (*_COLUMNS, *(_TIMES if timed else ()))]]
    for s in summaries:
        lines.append([_cell(s, key) for key, _ in _COLUMNS])
    for line, times in zip(lines[1:], timed):
        line += [_seconds(times[key]) for key, _ in _TIMES]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(w) if k < 2 else text.rjust(w)
            for k, (text, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(s: Summary, key: str) -> str:
    if key == "degrees":
        low, high = s.degree_min, s.degree_max
        return str(low) if low == high else f"{low}-{high}"
    value = getattr(s, key)
    if value is None:
        return "-" if key == "diameter" else "never"
    if key == "bytes_per_round":
        return _bytes(value)
    if key in ("rho", "spectral_gap"):
        text = f"{value:.6f}" if value == 0 or value >= 1e-3 else f"{value:.3e}"
        return f"{text}/{s.period}" if s.period > 1 else text
    if key == "rounds_to_halve":
        return "1 round" if value == 1 else f"{value:,} rounds"
    if key == "edges" and s.directed:
        return f"{value:,} arcs"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.3g} {unit}"


def _seconds(value: float) -> str:
    if value == math.inf:
        return "never"
    for factor, unit in ((1e6, "us"), (1e3, "ms"), (1.0, "s"), (1 / 3600, "h")):
        if value * factor < 1000 or unit == "h":
            break
    return f"{value * factor:.3g} {unit}"
