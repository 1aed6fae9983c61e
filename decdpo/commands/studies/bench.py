"""Measure this machine: a round of communication, a step of a model, a save, and their peers."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from decdpo.comm.mpi.mpirun import run as run_ranks
from decdpo.commands.studies import bench_checkpoint, bench_step
from decdpo.errors import ConfigError, EnvironmentFault
from decdpo.report.bench_table import table

GRAPHS = ("ring", "exponential", "complete")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``decdpo bench exchange``, ``step`` and ``checkpoint``."""
    topics = parser.add_subparsers(metavar="WHAT", required=True)
    text = "time one round (exchange and mixing) against bare MPI, memcpy, Allreduce and gloo"
    exchange = topics.add_parser("exchange", help=text, description=text, allow_abbrev=False)
    exchange.add_argument(
        "--graphs", default=",".join(GRAPHS), metavar="G,G,...", help="(%(default)s)"
    )
    exchange.add_argument(
        "--sizes", default="1e4,1e6,1e7", metavar="N,N,...", help="floats (%(default)s)"
    )
    exchange.add_argument(
        "--ranks", default="2,4", metavar="N,N,...", help="processes (%(default)s)"
    )
    exchange.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="samples of each (%(default)s)"
    )
    exchange.add_argument(
        "--limit", type=float, default=900.0, metavar="S",
        help="seconds for each number of ranks (%(default)g)",
    )  # fmt: skip
    exchange.add_argument("--json", action="store_true", help="print JSON, nothing else")
    exchange.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there as well")
    exchange.set_defaults(measure=_exchange)
    step = topics.add_parser(
        "step", help=bench_step.ABOUT, description=bench_step.ABOUT, allow_abbrev=False
    )
    bench_step.declare(step)
    step.set_defaults(measure=bench_step.run)
    about = bench_checkpoint.ABOUT
    checkpoint = topics.add_parser(
        "checkpoint", help=about, description=about, allow_abbrev=False
    )
    bench_checkpoint.declare(checkpoint)
    checkpoint.set_defaults(measure=bench_checkpoint.run)


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for."""
    measure: Callable[[argparse.Namespace], int] = args.measure
    return measure(args)


def _exchange(args: argparse.Namespace) -> int:
    """Start one ``mpirun`` per number of ranks and print what it measured."""
    graphs = _words(args.graphs)
    if not graphs:
        raise ConfigError("--graphs names none", f"choose from {', '.join(GRAPHS)}")
    for graph in graphs:
        if graph not in GRAPHS:
            raise ConfigError(f"--graphs: {graph!r} is none of {', '.join(GRAPHS)}")
    sizes, ranks = _numbers("--sizes", args.sizes), _numbers("--ranks", args.ranks)
    if args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}", "give at least 1")
    if not args.limit > 0:
        raise ConfigError(f"--limit is {args.limit:g}", "give a number of seconds above 0")
    if args.out is not None and not _is_writable(args.out):
        raise ConfigError(f"--out {args.out} cannot be written", "name a file in a folder of yours")
    if min(ranks) < 2:
        raise ConfigError(f"--ranks: {min(ranks)} process has no neighbour", "give at least 2")
    spec = {"graphs": graphs, "sizes": sizes, "samples": args.rounds}
    records: list[dict[str, Any]] = []
    failed: EnvironmentFault | None = None
    for count in ranks:
        print(f"decdpo: measuring {count} ranks", file=sys.stderr, flush=True)
        try:
            records += _measure(spec, count, args.limit)
        except EnvironmentFault as fault:
            # What was measured before is worth its time.
            failed = fault
            break
    if not records and failed is None:
        raise EnvironmentFault(
            f"nothing was measured within {args.limit:g} s", "raise --limit, or measure less"
        )
    if args.out is not None and records:
        from decdpo.files import replacing

        with replacing(args.out, mode=0o644) as partial:
            partial.write_text(json.dumps(records, indent=1) + "\n")
    if records:
        print(json.dumps(records, indent=1) if args.json else table(records))
    if failed is not None:
        raise failed
    return 0


def _measure(spec: dict[str, Any], ranks: int, limit: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="decdpo-bench-") as folder:
        out = Path(folder) / "records.json"
        module = [sys.executable, "-m", "decdpo.benchmarks.exchange"]
        # A file, not a pipe: what mpirun leaves behind when it is killed could keep a pipe open.
        with open(Path(folder) / "log", "w+") as log:
            code: int | None = None
            with suppress(subprocess.TimeoutExpired):
                code = run_ranks(
                    ranks, [*module, json.dumps(spec), str(out)], limit=limit, stdout=log,
                    stderr=log,
                )  # fmt: skip
            log.seek(0)
            said = log.read().strip()[-2000:]
        records = json.loads(out.read_text()) if out.exists() else []
    if code is None:
        print(f"decdpo: {ranks} ranks: stopped after {limit:.0f} s", file=sys.stderr)
    elif code != 0:
        raise EnvironmentFault(f"mpirun with {ranks} ranks ended with status {code}:\n{said}")
    return list(records)


def _is_writable(path: Path) -> bool:
    """Say whether a file can be made there: better known before the measurement than after."""
    return not os.path.isdir(path) and os.access(path.parent, os.W_OK)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(flag: str, text: str) -> list[int]:
    try:
        given = [float(word) for word in _words(text)]
        numbers = [int(number) for number in given]
    except (ValueError, OverflowError):
        raise ConfigError(f"{flag}: {text!r} is not a list of numbers") from None
    if not numbers or numbers != given or min(numbers) < 1:
        raise ConfigError(f"{flag}: {text!r} must be positive whole numbers")
    return numbers
