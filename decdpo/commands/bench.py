"""Measure this machine: how long a round of communication takes, beside simpler programs."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from decdpo.comm.mpirun import run as run_ranks
from decdpo.errors import ConfigError, EnvironmentFault

GRAPHS = ("ring", "exponential", "complete")
_COLUMNS = ("ours", "ours_p2p", "bare", "pass", "memcpy", "window", "allreduce", "gloo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``decdpo bench exchange``."""
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


def run(args: argparse.Namespace) -> int:
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
        from decdpo.data.storage import replacing

        with replacing(args.out, mode=0o644) as partial:
            partial.write_text(json.dumps(records, indent=1) + "\n")
    if records:
        print(json.dumps(records, indent=1) if args.json else _table(records))
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


def _table(records: list[dict[str, Any]]) -> str:
    """Return the medians in ms as text, with the ratios that matter."""
    ratios = {
        "/bare": "ratio_to_bare",
        "/(bare+pass)": "ratio_to_bare_plus_pass",
        "/window": "ratio_to_window",
    }
    head = ["ranks", "graph", "floats", *_COLUMNS, "spread", *ratios, "overhead us"]
    lines = [head]
    notes: list[str] = []
    loads: list[float] = []
    for item in records:
        cell = [str(item["ranks"]), item["graph"], f"{item['size']:.0e}"]
        if "skipped" in item:
            notes.append(f"{' '.join(cell)}: skipped, {item['skipped']}")
            continue
        low, high = item["quartiles_ms"]["ours"]
        cell += [_short(item["ms"].get(name)) for name in _COLUMNS]
        cell += [f"{_short(low)}-{_short(high)}"]
        cell += [_short(item.get(key)) for key in ratios.values()]
        cell += [f"{item['overhead_us']:.0f}"]
        lines.append(cell)
        loads.append(item["load"])
        if isinstance(item["hidden"], dict):
            parts = ", ".join(f"{name} {share:.0%}" for name, share in item["hidden"].items())
            notes.append(f"{' '.join(cell[:3])}: hidden behind as much compute: {parts}")
        for name, why in item["skipped_contestants"].items():
            notes.append(f"{' '.join(cell[:3])}: {name} skipped, {why}")
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = ["  ".join(text.rjust(w) for text, w in zip(line, widths)) for line in lines]
    if loads:
        notes.append(
            f"load average of the machine meanwhile: {min(loads):.1f} to {max(loads):.1f} "
            f"on {records[0].get('cores', '?')} cores"
        )
    return "\n".join(["median ms of a round; spread: quartiles of ours", *rows, *notes])


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


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
