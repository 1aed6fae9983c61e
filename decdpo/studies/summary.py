"""``summary.md``: what a study ran, what came out, and each claim with its outcome."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from decdpo.studies.cells import Cell
from decdpo.studies.claims import Claim, Verdict
from decdpo.studies.study import Options, Study
from decdpo.studies.table import Table


def summary_page(
    study: Study,
    options: Options,
    table: Table,
    verdicts: Sequence[tuple[Claim, Verdict]],
    broken: Sequence[tuple[Cell, str]],
    figures: Sequence[str],
    command: str,
) -> str:
    """Return the page as Markdown."""
    seeds = len(table.values("seed")) if table.rows else 0
    lines = [f"# {study.title}", "", f"Reproduces: {study.source}.", ""]
    lines += [f"    {command}", ""]
    lines += [f"- data: {study.describe_data(options)}", f"- seeds: {seeds}"]
    if study.setting:
        lines.append(f"- {study.setting}")
    if options.overrides:
        lines.append(f"- overrides: {', '.join(options.overrides)}")
    if options.quick:
        lines.append("- quick version: too small to decide anything")
    lines += ["", "## Claims", ""]
    for claim, verdict in verdicts:
        lines.append(f"- **{verdict.word}**: {claim.text} ({claim.source}).")
        lines.append(f"  {verdict.numbers}.")
        if verdict.why:
            lines.append(f"  {verdict.why}")
    if not verdicts:
        lines.append("None: a study of one's own makes a table and a figure.")
    if broken:
        lines += ["", "## Broken cells", ""]
        lines += [f"- {cell.name} (cells/{cell.digest}): {what.strip()}" for cell, what in broken]
    lines += ["", "## Final values", "", "Mean ± standard deviation over the seeds.", ""]
    lines += final_table(study, table)
    for name in figures:
        lines += ["", f"![{study.title}]({name})"]
    lines += ["", "## Files", ""]
    lines.append("`table.csv` has a row for each cell and record, `final.csv` each cell's last.")
    lines += [f"- `{key}`: {meaning}" for key, meaning in study.columns.items()]
    return "\n".join(lines) + "\n"


def final_table(study: Study, table: Table) -> list[str]:
    """Return a Markdown table of the final values, one line per combination of labels."""
    keys, numbers = study.summary_columns
    final = study.summary_rows(table)
    present = [n for n in numbers if n in final.columns]
    lines = [f"| {' | '.join((*keys, *present))} |", "|" + "---|" * (len(keys) + len(present))]
    groups = dict.fromkeys(tuple(row.get(k) for k in keys) for row in final.rows)
    for group in groups:
        rows = final.where(dict(zip(keys, group, strict=True))).rows
        cells = [_mean([r[n] for r in rows if r.get(n) is not None]) for n in present]
        lines.append(f"| {' | '.join([*map(_label, group), *cells])} |")
    return lines


def _label(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{spread}"
