"""Continue a run from its newest valid checkpoint, on any number of ranks.

The model, the data, the topology and the algorithm must be those of the run; what else may change,
such as optim.lr, is named with --allow. More rounds are asked for with --set run.rounds=N.

More agents are asked for with --set agents.count=N --allow agents.count, and with --set
data.shards=FOLDER where the run's own folder has not as many shards. The saved agents keep their
shards, unless --allow data lets them change. A new agent begins at the mean of its neighbours'
models; `decdpo replay` does not make such a run again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from decdpo.commands.alone import look_early
from decdpo.commands.training.train import add_launch_arguments
from decdpo.config import Config
from decdpo.errors import ConfigError
from decdpo.session.record import move_damaged, read_config, read_run


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

    def read(say: Callable[[str], None]) -> Config:
        return read_run(args.folder, args.set, say, training=True)

    look_early(read)
    from decdpo import __version__
    from decdpo.session.endings import finish
    from decdpo.session.experiment import prepare
    from decdpo.session.folder import locked
    from decdpo.session.growing import grow
    from decdpo.session.job import Job, launch
    from decdpo.session.resuming import change, step_sizes
    from decdpo.session.training import execute, restore_records
    from decdpo.train import Ending

    def body(job: Job) -> int:
        job.boot.require_same("the run folder", str(args.folder))
        config = job.together(lambda: read(job.say))
        for name, text in config.sections().items():
            job.boot.require_same(f"the section [{name}]", text)
        job.boot.require_same("the version of decdpo", __version__)
        with locked(job, args.folder):
            job.together(lambda: move_damaged(args.folder, job.say) if job.is_root else None)
            experiment = prepare(
                job,
                config,
                args.folder,
                more=bool({"agents", "agents.count"} & set(args.allow)),
                trace=args.trace,
                progress=args.progress,
            )
            store, states = experiment.store, experiment.states()
            done = store.load(states, allow=args.allow, required=True) or 0
            job.together(lambda: require_left(args.folder, config, done))
            restore_records(job, experiment, done)
            before = job.together(lambda: read_config(args.folder, []))
            sizes = step_sizes(before, config, done)
            news = f"; the step size goes {change(sizes)}" if sizes else ""
            job.say(f"resuming after round {done} of {config.run.rounds}{news}")
            ending = execute(job, experiment, next_round=done, news=grow(job, experiment, done))
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
