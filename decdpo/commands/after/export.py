"""Write the average model, or one agent's, for use elsewhere.

A causal language model becomes a Hugging Face folder that transformers loads, one with
[policy.lora] an adapter that PEFT loads over the base model, any other policy the file policy.npz
in the folder. A card, README.md, says which run, round, agents and data it is of.

The run need not be where it was trained: --set device.kind=cpu exports on a machine without a GPU,
--set data.shards=FOLDER and --set policy.model=FOLDER name what has moved. Agents, model and data
must be those of the checkpoint; nothing is written into the run folder.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from decdpo.commands.after.measuring import read_measured
from decdpo.config.policies import CausalLM
from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from decdpo.session.experiment import Experiment
    from decdpo.session.job import Job

USE_LANGUAGE_MODEL = '''from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")'''
USE_ADAPTER = '''from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("THIS_FOLDER")  # with the base model it names'''
USE_ARRAYS = '''import numpy as np
arrays = np.load("policy.npz", allow_pickle=False)'''


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
    from decdpo.session.job import launch

    return launch(lambda job: _export(job, args), "local")


def _export(job: "Job", args: argparse.Namespace) -> int:
    from decdpo.session.experiment import prepare
    from decdpo.session.measuring.models import saved_models

    config = read_measured(args.folder, args.set, job.say, unused=("loss",))
    job.together(lambda: _require_room(args.out))
    experiment = prepare(job, config, args.folder, training=False)
    agents = experiment.agents
    if args.agent is not None and not 0 <= args.agent < len(agents):
        raise ConfigError(
            f"--agent {args.agent}: the run has agents 0 to {len(agents) - 1}", "name one of them"
        )
    models = saved_models(experiment, args.round)
    if args.agent is None and agents[0].params.layout.has_personal:
        raise ConfigError(
            "the agents have personal parameters, of which there is no average",
            "export the model of one agent with --agent",
        )
    if args.agent is None:
        x = models.mean().data
        which = f"the average model of {len(agents)} agents"
    else:
        models.take(agents[args.agent])
        x, which = agents[args.agent].params.data, f"the model of agent {args.agent}"
    models.close()
    # A language model is a folder of several files.
    target = args.out if config.policy.kind == "causal_lm" else args.out / "policy.npz"
    job.together(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    written = experiment.objective.policy.export(x, target)
    _write_card(experiment, args, x, which, models.round)
    _set_modes(args.out)
    card = args.out / "README.md"
    job.say(f"{which} after round {models.round} is in {written}, described by {card}")
    return 0


def _write_card(
    experiment: "Experiment", args: argparse.Namespace, x: "Tensor", which: str, done: int
) -> None:
    """Write README.md beside the model."""
    from decdpo import __version__
    from decdpo.checkpoint.state import parameter_digest
    from decdpo.files import replacing
    from decdpo.report.card import card

    config, index = experiment.config, experiment.index
    graph = f" on {config.graph}" if config.graph else ""
    model = config.policy.model if isinstance(config.policy, CausalLM) else ""
    facts = {
        "model": which,
        "run": str(args.folder.absolute()),
        "round": f"{done} of {config.run.rounds}",
        "agents": str(experiment.world.num_agents),
        "trained by": f"{config.algorithm.kind}{graph}, loss {config.loss.kind}",
        "policy": config.policy.kind + (f", from {model}" if model else ""),
        "parameters": f"{x.numel():,} of {str(x.dtype).removeprefix('torch.')}",
        "sha256 of the parameters": parameter_digest(x),
        "data": f"{config.data.shards}, digest {index.digest[:16]}",
        "decdpo": __version__,
    }
    use = USE_ARRAYS
    if isinstance(config.policy, CausalLM):
        use = USE_ADAPTER if config.policy.lora.on else USE_LANGUAGE_MODEL
    with replacing(args.out / "README.md", mode=0o644) as partial:
        partial.write_text(card(facts, index.report, config.to_toml(), use), encoding="utf-8")


def _set_modes(out: Path) -> None:
    """Give folder and files the modes that new ones have; libraries write some for the owner."""
    umask = os.umask(0)
    os.umask(umask)
    out.chmod(0o777 & ~umask)
    for path in out.iterdir():
        path.chmod(0o666 & ~umask)


def _require_room(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", "give a new folder with --out")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty", "give a new folder with --out")
