"""Train the agents of one experiment.

Run it under mpirun or srun to spread the agents over ranks, or without to host all of them in one
process; the result is the same to the bit. The run folder then holds config.toml, metrics.jsonl,
checkpoints/, run.json, summary.txt and curves.png. SIGUSR1 or a file named `halt` in the run
folder stop it at the next common round end, saved, with exit status 85; so do Ctrl-C and SIGTERM,
except at Open MPI's mpirun, which kills its processes then.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from decdpo.commands.alone import look_early
from decdpo.config import Config, load
from decdpo.config.places import find_paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo train``."""
    parser.add_argument("config", help="TOML file; `decdpo config` prints one to start from")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="new run folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key"
    )
    add_launch_arguments(parser)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `train` and `resume` have in common."""
    parser.add_argument(
        "--world",
        choices=("auto", "local", "mpi"),
        default="auto",
        help="one process (local) or MPI; auto looks at how the program was launched",
    )
    parser.add_argument(
        "--trace", action="store_true", help="write a Chrome trace per process into RUN/trace"
    )
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "lines", "none"),
        default="auto",
        help="a live bar, a line every 10 s, or neither; auto draws the bar on a terminal",
    )


def run(args: argparse.Namespace) -> int:
    """Train, and return 0, or 85 if stopped early."""

    def read(say: Callable[[str], None]) -> Config:
        return find_paths(load(args.config, args.set), Path(args.config), say)

    look_early(read)
    from decdpo import __version__
    from decdpo.session.endings import finish
    from decdpo.session.experiment import prepare
    from decdpo.session.folder import locked, new_folder
    from decdpo.session.job import Job, launch
    from decdpo.session.training import execute
    from decdpo.train import Ending

    def body(job: Job) -> int:
        config = job.together(lambda: read(job.say))
        for name, text in config.sections().items():
            job.boot.require_same(f"the section [{name}]", text)
        job.boot.require_same("the version of decdpo", __version__)
        job.boot.require_same("--out", str(args.out))
        id = new_folder(job, args.out)
        with locked(job, args.out):
            experiment = prepare(
                job, config, args.out, id=id, trace=args.trace, progress=args.progress
            )
            ending = execute(job, experiment, next_round=0)
            experiment.close()
        return finish(job, args.out, ending is Ending.STOPPED, config.run.rounds)

    return launch(body, args.world, args.signals)
