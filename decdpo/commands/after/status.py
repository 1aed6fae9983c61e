"""Say how runs stand: round, pace, time left, last checkpoint, where they train.

Reads files only, so it works on a login node, while a run trains and afterwards. A folder that
cannot be read is named at the end, and the exit status is then not 0.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from decdpo.errors import DecdpoError
from decdpo.files import os_fault
from decdpo.progress import clock
from decdpo.session.record import read_config

if TYPE_CHECKING:
    from decdpo.session.status import RunStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo status``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print how every run stands and return 0, or the status of the first that cannot be read."""
    from decdpo.session.status import run_status

    found, broken = [], []
    for folder in args.runs:
        try:
            found.append(run_status(folder, read_config(folder, [], reading=True)))
        except (DecdpoError, OSError) as fault:
            broken.append(fault if isinstance(fault, DecdpoError) else os_fault(fault))
    if args.json:
        print(json.dumps([status.to_json() for status in found], indent=1))
    elif found:
        print("\n".join(line for status in found for line in lines(status)))
    for wrong in broken:
        print(f"decdpo: error: {wrong}", file=sys.stderr)
    return broken[0].exit_code if broken else 0


def lines(status: "RunStatus") -> Iterator[str]:
    """Yield what is known of a run as lines for people."""
    left = f", {clock(status.seconds_left)} left" if status.seconds_left is not None else ""
    yield f"{status.run}: {status.state}, round {status.round} of {status.rounds}{left}"
    if status.seconds_per_round is not None:
        yield f"  pace        {status.seconds_per_round:.3g} s a round"
    if status.loss is not None:
        accuracy = status.heldout_accuracy
        held = f", held-out accuracy {accuracy:.4f}" if accuracy is not None else ""
        yield f"  last record loss {status.loss:.4f}{held}"
    if status.saved_round is None or status.saved_seconds_ago is None:
        yield "  checkpoint  none yet"
    else:
        yield f"  checkpoint  round {status.saved_round}, {clock(status.saved_seconds_ago)} ago"
    processes = "1 process" if status.processes == 1 else f"{status.processes} processes"
    where = f"{status.agents} agents in {processes} on {', '.join(status.hosts)}"
    starts = "" if status.starts == 1 else f"; start {status.starts} of this run"
    if status.agents:
        yield f"  {'alive' if status.state == 'training' else 'trained':<11} {where}{starts}"
    yield f"  last change {clock(status.silent_seconds)} ago"
    if status.go_on:
        yield f"  go on with  {status.go_on}"
