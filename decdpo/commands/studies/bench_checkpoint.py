"""`decdpo bench checkpoint`: what saving costs on a disk, beside a raw write of the same bytes."""

import argparse
import json
from pathlib import Path

from decdpo.errors import ConfigError

ABOUT = "time a checkpoint against a raw write and torch.save, and what training waits for it"


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo bench checkpoint``."""
    parser.add_argument(
        "--mb", type=float, default=256.0, metavar="N", help="size of all states (%(default)g)"
    )
    parser.add_argument(
        "--agents", type=int, default=8, metavar="N", help="of this process (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="samples of each (%(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where to write: the disk of your runs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, nothing else")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from decdpo.benchmarks.checkpoint import bench
    from decdpo.files import naming
    from decdpo.report.checkpoint_table import checkpoint_table

    if not 0 < args.mb <= 1e6:
        raise ConfigError(f"--mb is {args.mb:g}", "give megabytes above 0")
    for flag, value in (("--agents", args.agents), ("--rounds", args.rounds)):
        if value < 1:
            raise ConfigError(f"{flag} is {value}", "give at least 1")
    if args.folder is not None and not args.folder.is_dir():
        raise ConfigError(f"--folder {args.folder}: there is no such folder", "make it first")
    with naming("cannot write there", args.folder or Path(".")):
        page = bench(int(args.mb * 1e6), args.agents, args.rounds, args.folder)
    print(json.dumps(page, indent=1) if args.json else checkpoint_table(page))
    return 0
