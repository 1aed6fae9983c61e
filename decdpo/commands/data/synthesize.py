"""Make the shards of synthetic users who differ by a set distance kappa.

choices: an answer is one choice of d features, judged by the user's own reward vector; train the
log-linear policy with policy.features = "columns" on them. trajectories: an answer is a sequence of
state:action steps in a common control task; train policy.kind = "trajectory". Every user's reward
vector lies at distance kappa from the common one, and labels follow the Bradley-Terry model.
"""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from decdpo.errors import DataError

_TASK = ("states", "actions", "horizon", "behaviour")

_POLICY = {
    "choices": 'policy.features = "columns"',
    "trajectories": 'policy.kind = "trajectory" or "tabular"',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo synthesize``."""
    parser.add_argument("kind", choices=("choices", "trajectories"), help="what an answer is")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make")
    parser.add_argument("--agents", type=int, metavar="N", help="number of users (16)")
    parser.add_argument("--pairs", type=int, metavar="N", help="pairs of each user (128)")
    parser.add_argument(
        "--kappa", type=float, help="distance of every reward vector from the common one (1)"
    )
    parser.add_argument(
        "--scale", type=float, help="length of the common reward vector; 0 is no common taste (1)"
    )
    parser.add_argument("--dimension", type=int, metavar="D", help="number of features (16)")
    parser.add_argument("--holdout", type=float, metavar="SHARE", help="share held out (0.1)")
    parser.add_argument("--seed", type=int, help="seed of everything (0)")
    task = parser.add_argument_group("trajectories only")
    task.add_argument("--states", type=int, metavar="S", help="number of states (20)")
    task.add_argument("--actions", type=int, metavar="A", help="number of actions (5)")
    task.add_argument("--horizon", type=int, metavar="H", help="steps of a trajectory (8)")
    task.add_argument(
        "--behaviour",
        type=float,
        metavar="NORM",
        help="length of the behaviour policy's parameters; 0 is the uniform policy (0)",
    )
    parser.add_argument("--force", action="store_true", help="replace the shards in DIR")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> int:
    """Make the shards, and say what was made."""
    from decdpo.data.synthetic import Choices, Trajectories, synthesize

    if args.kind == "choices":
        for key in _TASK:
            if getattr(args, key) is not None:
                raise DataError(
                    f"--{key} {getattr(args, key)} would be ignored: choices have no steps",
                    f"leave --{key} out, or make trajectories",
                )
    kind = Choices if args.kind == "choices" else Trajectories
    names = [field.name for field in fields(kind)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    index = synthesize(
        kind(**given),
        args.out,
        force=args.force,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    facts = index.report["synthetic"]
    if args.json:
        about = {"folder": str(args.out), "sharding": index.sharding, "digest": index.digest}
        print(json.dumps({**about, **facts}))
    else:
        held_out = index.agents[0].num_heldout
        print(f"{index.num_agents} shards of {facts['pairs']} pairs, {held_out} of them held out,")
        print(f"users at distance kappa = {facts['kappa']:g} from the common one, in {args.out}")
        print(f"train with {_POLICY[args.kind]}: the shards hold nothing else")
    return 0
