"""New people: the shared part of a run's models, with a personal part adapted to each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decdpo import build
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError
from decdpo.metrics.adaptation import adapt, beginning, few_pairs
from decdpo.params.flat import FlatParams
from decdpo.policies.stats import Stats
from decdpo.report.heldout import measured
from decdpo.session.experiment import Experiment

BEFORE, AFTER = "before", "after"
"""The models that are measured: as a new person finds it, and adapted."""


def require_adaptable(
    experiment: Experiment, folders: Sequence[Path], pairs: int, steps: int, lr: float
) -> None:
    """Raise ``ConfigError`` where there is nothing to adapt, or nobody to adapt to."""
    if pairs < 0 or steps < 1 or not 0 < lr < float("inf"):
        raise ConfigError(
            f"--adapt-pairs {pairs} --adapt-steps {steps} --adapt-lr {lr:g}",
            "give 0 pairs or more, 1 step or more, and a step size above 0",
        )
    if not folders:
        raise ConfigError(
            "--adapt-pairs adapts to people who were not in the run, and --data names none",
            "make shards of new people, and name their folder with --data",
        )
    if not experiment.objective.policy.layout.has_personal:
        raise ConfigError(
            "--adapt-pairs adapts the personal part of a model, and this run has none",
            "train with [policy.personal], or leave --adapt-pairs out",
        )


def measure_newcomers(
    experiment: Experiment,
    folders: Sequence[Path],
    shared: FlatParams,
    pairs: int,
    steps: int,
    lr: float,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Adapt to every person in ``folders`` and measure its held-out pairs. Collective.

    shared : the mean of the run's models, of which the shared part is taken. pairs : of training
    that the adaptation sees. steps, lr : that it takes, with the run's optimizer and batch size.

    Returns a row for each person, and the same for all their pairs together.

    Raises ``ConfigError`` for people without held-out pairs, or whom the run was trained on.
    """
    world = experiment.world
    indices = [ShardIndex.load(folder) for folder in folders]
    people = [(index, i) for index in indices for i in range(index.num_agents)]
    _require_new(experiment, people)
    mine: dict[int, list[dict[str, Any]]] = {a.id: [] for a in experiment.agents}
    for number, (index, i) in enumerate(people):
        agent = world.members.agents[number % world.num_agents]
        if agent in mine:
            data = experiment.objective.policy.encode(index.open(i))
            found = _measured(experiment, data, shared, pairs, steps, lr, number)
            about = {"person": number, "name": index.agents[i].name, "pairs": data.num_heldout}
            mine[agent].append({**about, **found})
    gathered = world.collect(mine)
    rows = sorted((row for some in gathered.values() for row in some), key=lambda r: r["person"])
    names = experiment.objective.names
    total: dict[str, Any] = {"pairs": sum(row["pairs"] for row in rows)}
    squares = sum(row["squared_weight"] for row in rows)
    for model in (BEFORE, AFTER):
        sums = np.sum([row[model]["sums"] for row in rows], axis=0)
        total[model] = measured(Stats(sums, names), squares)
    for row in rows:
        square = row.pop("squared_weight")
        for model in (BEFORE, AFTER):
            row[model] = measured(Stats(np.array(row[model]["sums"]), names), square)
    return rows, {"adapt_pairs": pairs, "adapt_steps": steps, "adapt_lr": lr, **total}


def _measured(
    experiment: Experiment,
    data: Any,
    shared: FlatParams,
    pairs: int,
    steps: int,
    lr: float,
    person: int,
) -> dict[str, Any]:
    config, objective = experiment.config, experiment.objective
    model = beginning(objective, shared)
    held = data.heldout_rows
    weight = np.ones(len(held)) if data.weight is None else data.weight[held]
    rows = few_pairs(data, pairs, config.run.seed, person)
    found: dict[str, Any] = {"adapted_on": len(rows), "squared_weight": float((weight**2).sum())}
    found[BEFORE] = {"sums": objective.evaluate(model, data, held).values.tolist()}
    adapt(
        objective,
        build.restrained(build.make_optimizer(config.optim), config, objective.policy),
        model,
        data,
        rows,
        steps=steps,
        batch_size=config.data.batch_size,
        lr=lr,
        seed=config.run.seed,
        person=person,
    )
    found[AFTER] = {"sums": objective.evaluate(model, data, held).values.tolist()}
    return found


def _require_new(experiment: Experiment, people: Sequence[tuple[ShardIndex, int]]) -> None:
    trained = {entry.digest for entry in experiment.index.agents}
    for index, i in people:
        entry = index.agents[i]
        if entry.digest in trained:
            raise ConfigError(
                f"--data {index.folder}: the run was trained on {entry.file}",
                "name shards of people who were not in the run",
            )
        if not entry.num_heldout:
            raise ConfigError(
                f"--data {index.folder}: {entry.file} holds out no pair to measure",
                "make the shards with pairs held out: --holdout, --holdout-items-per-user",
            )
