"""Continue a run from its newest valid checkpoint, on any number of ranks.

The model, the data, the topology and the algorithm must be those of the run; what else may change,
such as optim.lr, is named with --allow. More rounds are asked for with --set run.rounds=N.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from decdpo.commands.train import add_launch_arguments
from decdpo.config import Config, load
from decdpo.config.options import listing, nearest
from decdpo.config.places import find_paths
from decdpo.errors import CheckpointError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo resume``."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a key"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="let this key differ from the saved run's",
    )
    add_launch_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Resume, and return 0, or 85 if stopped early."""
    from decdpo import __version__
    from decdpo.session.endings import finish
    from decdpo.session.experiment import prepare
    from decdpo.session.folder import locked
    from decdpo.session.job import Job, launch
    from decdpo.session.resuming import change, step_sizes
    from decdpo.session.training import execute, restore_records
    from decdpo.train import Ending

    def body(job: Job) -> int:
        job.boot.require_same("the run folder", str(args.folder))
        config = job.together(lambda: read_run(args.folder, args.set, job.say, training=True))
        for name, text in config.sections().items():
            job.boot.require_same(f"the section [{name}]", text)
        job.boot.require_same("the version of decdpo", __version__)
        with locked(job, args.folder):
            experiment = prepare(
                job, config, args.folder, trace=args.trace, progress=args.progress
            )
            store, states = experiment.store, experiment.states()
            done = store.load(states, allow=args.allow, required=True) or 0
            job.together(lambda: require_left(args.folder, config, done))
            restore_records(job, experiment, done)
            before = job.together(lambda: read_config(args.folder, []))
            sizes = step_sizes(before, config, done)
            news = f"; the step size goes {change(sizes)}" if sizes else ""
            job.say(f"resuming after round {done} of {config.run.rounds}{news}")
            ending = execute(job, experiment, next_round=done)
            experiment.close()
        return finish(job, args.folder, ending is Ending.STOPPED, config.run.rounds)

    return launch(body, args.world, args.signals)


def require_left(folder: Path, config: Config, done: int) -> None:
    """Raise ``ConfigError`` if fewer rounds are asked for than are done."""
    if config.run.rounds < done:
        raise ConfigError(
            f"run.rounds = {config.run.rounds}, but {folder} has already done {done} rounds",
            f"set run.rounds to {done} or more; an earlier model is measured by `decdpo evaluate "
            "--round`, if its checkpoint was kept",
        )


def read_config(folder: Path, overrides: list[str], *, reading: bool = False) -> Config:
    """Return the configuration of a run folder with ``overrides`` applied.

    reading : for a run that is not trained any more, see ``config.load``.

    Raises ``CheckpointError`` if it is not a run folder.
    """
    path = folder / "config.toml"
    if not path.is_file():
        what = f"there is no {folder.absolute()}"
        if folder.is_dir():
            what = "it has no config.toml (killed before its first checkpoint?)"
        raise CheckpointError(f"{folder} is not a run folder: {what}", other_runs(folder))
    return load(path, overrides, reading=reading)


def other_runs(folder: Path) -> str:
    """Return which runs there are where ``folder`` is not one."""
    inside, names = folder, _runs_in(folder)
    if not names:
        inside, names = folder.absolute().parent, _runs_in(folder.absolute().parent)
    close = "" if folder.is_dir() else nearest(folder.name, names)
    made = f"give a folder that `decdpo train --out` made{close}"
    return f"{made}: {listing(inside, names, 'run')}"


def _runs_in(folder: Path) -> list[str]:
    try:
        return [path.parent.name for path in folder.glob("*/config.toml")]
    except OSError:
        return []


def read_run(
    folder: Path, overrides: list[str], say: Callable[[str], None], *, training: bool = False
) -> Config:
    """Return the configuration of a run folder, its paths found wherever decdpo is run.

    say : is told of paths that are not where the configuration says. training : whether what only
    training needs is sought, too.

    Raises ``CheckpointError`` if it is not a run folder, ``ConfigError`` if a path leads nowhere.
    """
    config = read_config(folder, overrides, reading=not training)
    return find_paths(config, folder / "config.toml", say, training=training)
