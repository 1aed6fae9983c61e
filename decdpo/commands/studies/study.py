"""Run a grid of experiments and hold it against the claims of the papers.

NAME is a built-in study (see --list), or a TOML file with a base configuration and a grid of one's
own. The folder DIR then holds table.csv (one row per cell and record), final.csv, figures, and
summary.md, which states each claim of the source and whether it held. Cells that are finished are
kept: the same command again does only what is missing. The exit status is 1 if a cell is broken.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.studies.study import Options, Study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo study``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="built-in study, or a TOML file")
    parser.add_argument("--list", action="store_true", help="name the built-in studies")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--ranks", type=int, default=0, metavar="N",
        help="run every training cell under mpirun on N ranks; 0: in this process (0)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a small version, to try it")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds (mostly 5)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="override a key in every cell",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", action="store_true",
        help="write a SLURM array job of the unfinished training cells instead of running them",
    )  # fmt: skip
    data = parser.add_argument_group("data", "synthetic users unless --data is given")
    data.add_argument(
        "--data", type=Path, nargs="+", metavar="PATH",
        help="folders of shards (one for each seed in turn), or files of preference data",
    )  # fmt: skip
    data.add_argument("--agents", type=int, metavar="N", help="number of agents (mostly 16)")
    data.add_argument(
        "--partition", metavar="RULE", help="how files are dealt out, as in decdpo shard (iid)"
    )
    data.add_argument("--holdout", type=float, metavar="SHARE", help="share held out (0.1)")
    data.add_argument("--group", metavar="COLUMN", help="hold out whole values of this column")
    parser.add_argument("--part", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the study; return 1 if a cell is broken."""
    from decdpo.studies.catalogue import STUDIES, builtin

    if args.list:
        for name in STUDIES:
            about = builtin(name)
            print(f"{name:<18}{about.title} ({about.source})")
        return 0
    if not args.name or args.out is None:
        raise ConfigError("no study or no folder is named", "write decdpo study NAME --out DIR")
    if args.jobs < 1 or (args.seeds is not None and args.seeds < 1):
        raise ConfigError("--jobs and --seeds count from 1", "give 1 or more")
    if args.ranks < 0 or (args.ranks and args.jobs > 1):
        raise ConfigError(
            f"--ranks {args.ranks} with --jobs {args.jobs}", "give --jobs 1 and 1 rank or more"
        )
    if args.agents is not None and args.agents < 1:
        raise ConfigError(f"--agents {args.agents} counts from 1", "give 1 or more")
    if args.name.endswith(".toml"):
        from decdpo.studies.custom import load

        study: "Study" = load(Path(args.name))
    else:
        study = builtin(args.name)
    return _run(study, _options(args, study), args)


def _options(args: argparse.Namespace, study: "Study") -> "Options":
    from decdpo.studies.data import Sources, find
    from decdpo.studies.study import Options

    data = None
    dealing = {key: getattr(args, key) for key in ("partition", "holdout", "group")}
    given = [key for key, value in dealing.items() if value is not None]
    if args.data:
        partition = args.partition or study.partition
        data = find(
            tuple(args.data),
            agents=args.agents or (None if partition.startswith("by:") else study.agents),
            partition=partition,
            holdout=0.1 if args.holdout is None else args.holdout,
            group=args.group,
        )
    if given and not isinstance(data, Sources):
        raise ConfigError(
            f"--{given[0]} says how files are dealt out, and --data names none",
            "name files of preference data with --data, or leave it out",
        )
    overrides = tuple(args.set)
    return Options(args.out, args.seeds, args.quick, args.agents, data, overrides)


def _run(study: "Study", options: "Options", args: argparse.Namespace) -> int:
    from decdpo.progress import Working
    from decdpo.studies import engine

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.part:
        share, parts = (int(number) for number in args.part.split("/"))
        broken = engine.run_cells(study.cells(options), args.out, say, (share, parts))
        return 1 if broken else 0
    arguments = _arguments(args)
    working = Working(say)
    with engine.locked(args.out, say):
        with working("making the pairs and the list of cells"):
            cells = study.cells(options)
        say(f"{args.name}: {len(cells)} cells, those finished earlier are kept")
        if args.slurm:
            from decdpo.studies.slurm import write_array

            print(write_array(study, cells, args.out, say))
            return 0
        if args.jobs > 1:
            engine.run_parts(engine.command_of(arguments), args.jobs)
        else:
            engine.run_cells(cells, args.out, say, ranks=args.ranks)
        with working("reading the cells and judging the claims"):
            result = engine.collect(study, cells, args.out)
        command = " ".join(["decdpo", *map(str, arguments)])
        with working("writing the table and drawing the figures"):
            engine.write_results(study, options, result, command, say)
    for claim, verdict in result.verdicts:
        print(f"{verdict.word:<10}  {claim.text}\n            {verdict.numbers}")
    for cell, what in result.broken:
        say(f"broken: {cell.name} (cells/{cell.digest}): {what.strip().splitlines()[-1]}")
    say(f"see {args.out / 'summary.md'}")
    return 1 if result.broken else 0


def _arguments(args: argparse.Namespace) -> list[str]:
    """Return the command line again, without how the cells are to be run."""
    found = ["study", args.name, "--out", str(args.out)]
    found += ["--quick"] if args.quick else []
    for key in ("seeds", "agents", "partition", "holdout", "group"):
        value = getattr(args, key)
        found += [] if value is None else [f"--{key}", str(value)]
    for override in args.set:
        found += ["--set", override]
    if args.data:
        found += ["--data", *map(str, args.data)]
    return found
