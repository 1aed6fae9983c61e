"""Compare runs in a table, a figure and a page, and explain the rewards of their chosen answers.

A falling rewards/chosen is common with DPO, whose loss sees only the difference of both rewards.
The last lines say for each run which way it went and why, from the drift of the chosen answers, the
gradient imbalance and the share of saturated pairs, averaged over the last tenth of the rounds. A
folder that cannot be read is named at the end, and the exit status is then not 0.

--html makes one page for a browser, also while a run trains: curves of all runs over rounds, time
or bytes, agents, graph, time by part, restarts, differences of the configurations, and what it
takes to have the runs again. The file holds all it needs and reaches for nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decdpo.errors import ConfigError, DataError, DecdpoError
from decdpo.files import os_fault, replacing
from decdpo.session.record import read_config

if TYPE_CHECKING:
    from decdpo.report.compare import RunFacts

KEYS = {"bytes", "heldout/accuracy_by_agent", "system"}
"""What every record of a run has beside its round."""

SPENT = {"elapsed_seconds"}
"""What its ``system`` has at least."""

REWARDS = {"rewards/rejected", "drift/chosen", "imbalance/log_ratio", "saturated"}
"""What it has beside ``rewards/chosen``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo report``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the curves into FILE.png and FILE.svg"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="make a page of everything that the runs show"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the table, draw the figure if wanted, and return 0."""
    from decdpo.report.compare import plot, table

    if args.plot is not None and args.plot.suffix not in ("", ".png", ".svg"):
        raise ConfigError(f"--plot {args.plot}: unknown kind of picture", "end it in .png or .svg")
    if args.plot is not None and not args.plot.name:
        raise ConfigError("--plot names no file", "end it in .png or .svg")
    if args.html is not None and args.html.suffix not in (".html", ".htm"):
        raise ConfigError(f"--html {args.html} is not the name of a page", "end it in .html")
    runs, broken = [], []
    for folder in args.runs:
        try:
            runs.append(read_run(folder))
        except (DecdpoError, OSError) as fault:
            broken.append(fault if isinstance(fault, DecdpoError) else os_fault(fault))
    if not runs:
        return _name(broken)
    print(json.dumps([r.to_json() for r in runs], indent=1) if args.json else table(runs))
    if args.plot is not None:
        plot(runs, args.plot)
        print(f"drawn to {args.plot.with_suffix('.png')} and .svg", file=sys.stderr)
    if args.html is not None:
        _write_page(runs, args.html)
        print(f"page written to {args.html}", file=sys.stderr)
    return _name(broken)


def _write_page(runs: Sequence["RunFacts"], path: Path) -> None:
    from decdpo.report.compare import names_of
    from decdpo.report.page.html import page
    from decdpo.session.shown import shown

    found = [
        shown(name, run, read_config(run.folder, [], reading=True))
        for name, run in zip(names_of(runs), runs, strict=True)
    ]
    text = page(found, datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    with replacing(path, mode=0o644) as partial:
        partial.write_text(text, encoding="utf-8")


def _name(broken: Sequence[DecdpoError]) -> int:
    """Print what is wrong with the folders that are left out; return the status of the first."""
    for fault in broken:
        print(f"decdpo: error: {fault}", file=sys.stderr)
    return broken[0].exit_code if broken else 0


def read_run(folder: Path) -> "RunFacts":
    """Return what the run folder holds.

    Raises ``CheckpointError`` if it is none, ``DataError`` if nothing is recorded there yet.
    """
    from decdpo.report.compare import RunFacts
    from decdpo.report.curves import read_metrics

    config = read_config(folder, [], reading=True)
    path = folder / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    if not records:
        raise DataError(f"{path} has no record yet", "wait for the first recorded round")
    for record in records:
        missing = _missing(record)
        if missing:
            raise DataError(
                f"{path}: the record of round {record['round']} has no {missing[0]}",
                "restore the file: this is not what a run writes",
            )
    graph = f" on {config.graph}" if config.graph else ""
    steps = config.pace.words(config.algorithm.local_steps).replace("E = ", "E=")
    what = f"{config.algorithm.kind}{graph}, {steps}, lr {config.optim.lr:g}, {config.loss.kind}"
    agents = len(records[-1]["heldout/accuracy_by_agent"])
    return RunFacts(folder, what, agents, records)


def _missing(record: dict[str, Any]) -> list[str]:
    """Return what the table wants of a record and does not find."""
    rewards = REWARDS if record.get("rewards/chosen") is not None else set()
    found = {key for key, value in record.items() if value is not None}
    missing = sorted((KEYS | rewards) - found)
    if not missing and not isinstance(record["heldout/accuracy_by_agent"], list):
        missing = ["list heldout/accuracy_by_agent"]
    return missing or sorted(SPENT - record["system"].keys())
