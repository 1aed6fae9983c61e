"""Write the average model, or one agent's, for use elsewhere.

A causal language model becomes a Hugging Face folder that transformers loads, any other policy the
file policy.npz in the folder.

The run need not be where it was trained: --set device.kind=cpu exports on a machine without a GPU,
--set data.shards=FOLDER and --set policy.model=FOLDER name what has moved. Agents, model and data
must be those of the checkpoint; nothing is written into the run folder.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from decdpo.commands.resume import read_run
from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.launch import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo export``."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--agent", type=int, help="this agent's model; default: the average")
    parser.add_argument("--round", type=int, help="checkpoint of this round; default: the newest")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a key"
    )


def run(args: argparse.Namespace) -> int:
    """Export the model."""
    from decdpo.launch import launch

    return launch(lambda job: _export(job, args), "local")


def _export(job: "Job", args: argparse.Namespace) -> int:
    from decdpo.evaluation import average_model
    from decdpo.experiment import prepare

    config = read_run(args.folder, args.set, job.say)
    job.together(lambda: _require_room(args.out))
    experiment = prepare(job, config, args.folder, training=False)
    agents = experiment.agents
    if args.agent is not None and not 0 <= args.agent < len(agents):
        raise ConfigError(
            f"--agent {args.agent}: the run has agents 0 to {len(agents) - 1}", "name one of them"
        )
    done = experiment.store.load(experiment.states(), round=args.round, required=True)
    if args.agent is None:
        x, which = average_model(experiment.world, agents).data, "the average model"
    else:
        x, which = agents[args.agent].params.data, f"the model of agent {args.agent}"
    # A language model is a folder of several files.
    target = args.out if config.policy.kind == "causal_lm" else args.out / "policy.npz"
    job.together(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    written = experiment.objective.policy.export(x, target)
    job.say(f"{which} after round {done} is in {written}")
    return 0


def _require_room(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty", "give a new folder with --out")
