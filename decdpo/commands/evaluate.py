"""Measure loss, accuracy and margins on the held-out pairs of every agent.

Each agent's own model and the average model are measured on the agent's held-out pairs; only
parameters and sums are shared between the processes, never pairs.

The run need not be where it was trained: --set device.kind=cpu measures on a machine without a GPU,
--set data.shards=FOLDER and --set policy.model=FOLDER name what has moved. Agents, model and data
must be those of the checkpoint; nothing is written into the run folder.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decdpo.commands.resume import read_run

if TYPE_CHECKING:
    from decdpo.launch import Job

NAMES = (("loss", "loss"), ("accuracy", "rewards/accuracies"), ("margin", "rewards/margins"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo evaluate``."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--round", type=int, help="checkpoint of this round; default: the newest")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a key"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--world", choices=("auto", "local", "mpi"), default="auto",
                        help="one process (local) or MPI")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    from decdpo.launch import launch

    return launch(lambda job: _evaluate(job, args), args.world)


def _evaluate(job: "Job", args: argparse.Namespace) -> int:
    from decdpo.evaluation import average_model, pooled
    from decdpo.experiment import prepare
    from decdpo.progress import Working

    job.boot.require_same("the run folder", str(args.folder))
    config = job.together(lambda: read_run(args.folder, args.set, job.say))
    experiment = prepare(job, config, args.folder, training=False)
    world, agents, objective = experiment.world, experiment.agents, experiment.objective
    done = experiment.store.load(experiment.states(), round=args.round, required=True)
    with Working(job.say)(f"measuring the held-out pairs with the models of round {done}"):
        mean = average_model(world, agents)
        own = objective.evaluations([a.batch(a.data.heldout_rows) for a in agents])
        average = objective.evaluations([a.batch(a.data.heldout_rows, mean) for a in agents])
    models = {
        model: {a.id: stats for a, stats in zip(agents, scored)}
        for model, scored in (("own", own), ("average", average))
    }
    mine = {
        a.id: {"pairs": a.data.num_heldout, **{m: _pick(s[a.id]) for m, s in models.items()}}
        for a in agents
    }
    every_agent = world.collect(mine)
    total = {m: _pick(pooled(world, s)) for m, s in models.items()}
    experiment.close()
    if not job.is_root:
        return 0
    rows = [
        {"agent": i, "name": experiment.index.agents[i].name, **every_agent[i]}
        for i in range(world.num_agents)
    ]
    result = {"run": str(args.folder), "round": done, "agents": rows, **total}
    print(json.dumps(result, indent=1) if args.json else _table(result))
    return 0


def _pick(stats: Any) -> dict[str, float] | None:
    means = stats.means()
    return {name: means[key] for name, key in NAMES} if means else None


def _table(result: dict[str, Any]) -> str:
    """Return the result as a table for people."""
    head = f"{'agent':<16}{'pairs':>7}" + "".join(
        f"{model + ' ' + name:>18}" for model in ("own", "average") for name, _ in NAMES
    )
    lines = [f"{result['run']} after round {result['round']}, held-out pairs", head]
    everyone = {"pairs": sum(r["pairs"] for r in result["agents"]), **result}
    for row, label in [
        *((r, f"{r['agent']} {r['name']}".strip()) for r in result["agents"]),
        (everyone, "all"),
    ]:
        cells = f"{label[:15]:<16}{row['pairs']:>7}"
        for model in ("own", "average"):
            for name, _ in NAMES:
                cells += f"{row[model][name]:>18.4f}" if row[model] else f"{'-':>18}"
        lines.append(cells)
    return "\n".join(lines)
