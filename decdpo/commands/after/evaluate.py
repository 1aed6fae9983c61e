"""Measure loss, accuracy and margins on the held-out pairs of every agent, or on other pairs.

Each agent's own model and the average model are measured on the agent's held-out pairs; only
parameters and sums are shared between the processes, never pairs. With --data it is all pairs of
other shards, such as a test set made by `decdpo shard` with the same kind of pairs: as many shards
as agents are dealt out one to an agent, of any other number every agent gets all.

With --adapt-pairs K the shards of --data are those of new people: each begins with the mean of what
is shared and a personal part of its own, which alone is trained, on K of its training pairs.

The run need not be where it was trained: --set device.kind=cpu measures on a machine without a GPU,
--set data.shards=FOLDER and --set policy.model=FOLDER name what has moved. Agents, model and data
must be those of the checkpoint; nothing is written into the run folder.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decdpo.commands.after.measuring import read_measured
from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.session.experiment import Experiment
    from decdpo.session.job import Job
    from decdpo.session.measuring.models import MeasuredModels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo evaluate``."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--round", type=int, help="checkpoint of this round; default: the newest")
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="SHARDS",
        help="folders of other shards, whose pairs are all measured; default: held-out pairs",
    )  # fmt: skip
    parser.add_argument(
        "--adapt-pairs", type=int, metavar="K",
        help="of each new person in --data, adapt the personal part to K training pairs, and "
        "measure the held-out ones, before and after",
    )  # fmt: skip
    parser.add_argument(
        "--adapt-steps", type=int, default=100, metavar="N",
        help="optimizer steps of the adaptation, on data.batch_size pairs each (100)",
    )  # fmt: skip
    parser.add_argument(
        "--adapt-lr", type=float, metavar="ETA", help="step size of the adaptation (optim.lr)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a key"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--world", choices=("auto", "local", "mpi"), default="auto",
                        help="one process (local) or MPI")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    from decdpo.session.job import launch

    return launch(lambda job: _evaluate(job, args), args.world)


def _evaluate(job: "Job", args: argparse.Namespace) -> int:
    from decdpo.progress import Working
    from decdpo.report.heldout import heldout_table
    from decdpo.session.experiment import prepare
    from decdpo.session.measuring.models import saved_models

    job.boot.require_same("the run folder", str(args.folder))
    job.boot.require_same("--data", " ".join(map(str, args.data or ())))
    config = job.together(lambda: read_measured(args.folder, args.set, job.say))
    experiment = prepare(job, config, args.folder, training=False)
    models = saved_models(experiment, args.round)
    working = Working(job.say)
    if args.adapt_pairs is not None:
        return _newcomers(job, args, experiment, models)
    with working("reading the pairs to be measured"):
        pairs, times = job.together(
            lambda: _pairs(experiment, args.data), work="read the pairs to be measured"
        )
    with working(f"measuring pairs with the models of round {models.round}"):
        every_agent, total = _measure(experiment, models, pairs, times)
    models.close()
    experiment.close()
    if not job.is_root:
        return 0
    what = "held-out pairs" if not args.data else "pairs of " + ", ".join(map(str, args.data))
    rows = [
        {"agent": i, "name": experiment.index.agents[i].name, **found}
        for i, found in every_agent.items()
    ]
    about = {"run": str(args.folder), "round": models.round, "pairs_of": what}
    result = {**about, "agents": rows, **total}
    print(json.dumps(result, indent=1) if args.json else heldout_table(result))
    if not total["pairs"]:
        job.say("no pair is held out: name other shards with --data")
    return 0


def _newcomers(
    job: "Job", args: argparse.Namespace, experiment: "Experiment", models: "MeasuredModels"
) -> int:
    """Adapt to new people, measure and print it."""
    from decdpo.report.heldout import newcomers_table
    from decdpo.session.measuring.newcomers import measure_newcomers, require_adaptable

    folders, pairs, steps = args.data or [], args.adapt_pairs, args.adapt_steps
    lr = experiment.config.optim.lr if args.adapt_lr is None else args.adapt_lr
    job.together(lambda: require_adaptable(experiment, folders, pairs, steps, lr))
    people, total = measure_newcomers(experiment, folders, models.mean(), pairs, steps, lr)
    models.close()
    experiment.close()
    if job.is_root:
        about = {"run": str(args.folder), "round": models.round}
        result = {**about, "pairs_of": ", ".join(map(str, folders)), "people": people, **total}
        print(json.dumps(result, indent=1) if args.json else newcomers_table(result))
    return 0


def _measure(
    experiment: "Experiment", models: "MeasuredModels", pairs: dict[int, list[Any]], times: int
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Return what is measured for every agent, and for all pairs together. Collective.

    pairs : (encoded shard, rows) of each local agent, as ``_pairs`` returns them. times : how many
    agents are measured on each pair: together they are no more pairs by that.
    """
    import numpy as np

    from decdpo.metrics.evaluation import pool
    from decdpo.policies.stats import Stats
    from decdpo.report.heldout import MODELS, measured

    world, mean, none = experiment.world, models.mean(), experiment.objective.no_stats()
    columns: tuple[dict[int, np.ndarray], ...] = ({}, {})
    for agent in models.each():
        for model, column in zip((None, mean), columns):
            if model is agent.params:
                # The mean of a single agent is its own model.
                column[agent.id] = columns[0][agent.id]
                continue
            batches = [agent.batch(r, model)._replace(data=d) for d, r in pairs[agent.id]]
            scored = experiment.objective.evaluations(batches)
            column[agent.id] = sum(scored, none).values
    sizes = {i: np.array([[len(r), _squared_weight(d, r)] for d, r in own]).sum(axis=0)
             for i, own in pairs.items()}  # fmt: skip

    def facts(size: np.ndarray, *values: np.ndarray) -> dict[str, Any]:
        found = {
            m: measured(Stats(v, none.names), size[1])
            for m, v in zip(MODELS, values, strict=True)
        }
        return {"pairs": int(size[0]), **found}

    every_agent = world.collect({i: facts(sizes[i], *(c[i] for c in columns)) for i in sizes})
    size, *sums = pool(world, sizes, *columns)
    return every_agent, facts(size * (1 / times, times), *sums)


def _pairs(
    experiment: "Experiment", folders: list[Path] | None
) -> tuple[dict[int, list[Any]], int]:
    """Return (encoded shard, rows) of the pairs on which each local agent is measured.

    Besides, on how many agents each pair is.
    """
    if not folders:
        return {a.id: [(a.data, a.data.heldout_rows)] for a in experiment.agents}, 1
    import numpy as np

    from decdpo.data.index import ShardIndex
    from decdpo.losses.names import LOSSES

    loss = experiment.config.loss.kind
    needs_score = LOSSES[loss].needs_score
    places = [(index, i) for index in map(ShardIndex.load, folders)
              for i in range(index.num_agents)]  # fmt: skip
    trained = {entry.digest for entry in experiment.index.agents}
    for index, i in places:
        if index.agents[i].digest in trained:
            raise ConfigError(
                f"--data {index.folder}: the run was trained on {index.agents[i].file}",
                "leave --data out to measure the pairs that were held out there",
            )
    n = experiment.world.num_agents
    policy = experiment.objective.policy
    read: dict[int, Any] = {}

    def encoded(place: int) -> Any:
        if place not in read:
            index, i = places[place]
            shard = policy.encode(index.open(i))
            if needs_score and shard.score_gap is None:
                raise ConfigError(
                    f"--data {index.folder}: loss.kind = {loss!r} needs a score of each answer, "
                    f"which {index.agents[i].file} does not have",
                    "shard a source with scores, or measure with another --set loss.kind",
                )
            read[place] = (shard, np.arange(shard.num_pairs))
        return read[place]

    # To all that the run began with; those that were lost measure nothing.
    dealt = len(places) == len(experiment.history.everybody)
    chosen = {a.id: [a.id] if dealt else range(len(places)) for a in experiment.agents}
    found = {agent: [encoded(place) for place in mine] for agent, mine in chosen.items()}
    return found, 1 if dealt else n


def _squared_weight(shard: Any, rows: Any) -> float:
    """Return the sum of the squared weights of the ``rows`` of an encoded shard."""
    return float(len(rows) if shard.weight is None else (shard.weight[rows] ** 2).sum())
