"""People who rate items, and cells that train on them and note each person's accuracy."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decdpo import build
from decdpo.data.index import FILE_NAME, ShardIndex
from decdpo.data.ingest.formats.rated import RatedColumns
from decdpo.data.plan import Plan, RatedPlan
from decdpo.data.sharding import make_shards
from decdpo.files import replacing
from decdpo.metrics.adaptation import adapt, beginning, few_pairs
from decdpo.metrics.evaluation import average_model
from decdpo.params.flat import FlatParams
from decdpo.params.optim import AdamW
from decdpo.policies.stats import Stats
from decdpo.run import Run
from decdpo.studies.cells import Memory, Training, read_result
from decdpo.studies.people.item_model import PROMPT, write_item_model
from decdpo.studies.table import Row

PEOPLE = "people.json"
"""What a cell noted of every person."""
SHOTS = (0, 4, 16, 64)
"""Pairs that somebody new is adapted to."""
UNSEEN = 16
"""People who are not in the run, to whom its models are adapted, at most."""
STEPS = 30
"""Optimizer steps of that adaptation."""
ITEMS, TASTES, NOISE = 60, 4, 2.0


@dataclass(frozen=True)
class World:
    """Synthetic people: r_ij = 3 m_j + 3 t_i . f_j + noise, with m, t and f standard normal.

    people : how many. seed : of everything. Each person rates two thirds of ``ITEMS`` items, and a
    fifth of them is held out. f has ``TASTES`` columns, so t_i . f_j is divided by its root.
    """

    people: int
    seed: int

    def make(self, room: Path) -> tuple[ShardIndex, Path]:
        """Return the shards, one for each person, and the model that knows the items."""
        room = room / f"people-{self.people}-{self.seed}"
        rng = np.random.default_rng([self.seed, 7])
        mean, factor = rng.normal(size=ITEMS), rng.normal(size=(ITEMS, TASTES))
        names = [f"item{j}" for j in range(ITEMS)]
        known = np.column_stack([mean, factor]) / 32**0.5
        model = write_item_model(room / "model", names, known, self.seed)
        if not (room / "shards" / FILE_NAME).exists():
            taste = rng.normal(size=(self.people, TASTES))
            values = 3 * mean + 3 * taste @ factor.T / TASTES**0.5
            values += NOISE * rng.normal(size=values.shape)
            with (room / "ratings.csv").open("w", newline="") as stream:
                table = csv.writer(stream)
                table.writerow(("user", "item", "text", "rating"))
                for i in range(self.people):
                    for j in rng.permutation(ITEMS)[: 2 * ITEMS // 3]:
                        table.writerow((f"p{i:04d}", j, names[j], f"{values[i, j]:.2f}"))
            rated = RatedPlan(RatedColumns(prompt_text=PROMPT, text="text"), None, 2.0, 0.2)
            plan = Plan("by:user", pairs_per_agent=200, seed=self.seed, rated=rated)
            make_shards([room / "ratings.csv"], room / "shards", plan)
        return ShardIndex.load(room / "shards"), model


@dataclass(frozen=True)
class Person:
    """What is noted of one person: who, and held-out accuracies by the name of the model.

    shots : pairs that a model was adapted to, None for a person of the run.
    """

    person: str
    own: float
    average: float | None = None
    shots: int | None = None


@dataclass(frozen=True)
class PeopleTraining(Training):
    """A training run that notes the accuracy of each person, and of new people if ``unseen``.

    The shards after those of the agents are the unseen people's, of whom ``UNSEEN`` are taken.
    """

    unseen: bool = False

    def identity(self) -> str:
        """Return the run's identity, and whether new people are adapted to."""
        return f"{super().identity()} unseen {self.unseen}"

    def finished(self, folder: Path) -> bool:
        """Say whether the last round is recorded, and the people noted."""
        return super().finished(folder) and (folder / PEOPLE).exists()

    def after(self, run: Run, folder: Path) -> None:
        """Note every person's held-out accuracy."""
        assert hasattr(run.monitor, "heldout")
        heldout, mean = run.monitor.heldout, average_model(run.world, run.agents)
        index = ShardIndex.load(self.config.data.shards)
        own, average = heldout.both(run, mean)
        found = [
            Person(index.agents[i].name, _accuracy(own[i]), _accuracy(average[i])) for i in own
        ]
        if self.unseen:
            found += self._newcomers(run, index, mean)
        with replacing(folder / PEOPLE, mode=0o644) as partial:
            partial.write_text(json.dumps([vars(p) for p in found]) + "\n", encoding="utf-8")

    def _newcomers(self, run: Run, index: ShardIndex, mean: FlatParams) -> list[Person]:
        objective, config = run.objective, self.config
        optimizer = build.restrained(AdamW(), config, objective.policy)
        found = []
        first = run.world.num_agents
        for number in range(first, min(first + UNSEEN, index.num_agents)):
            data = objective.policy.encode(index.open(number))
            for shots in SHOTS:
                model = beginning(objective, mean)
                rows = few_pairs(data, shots, config.run.seed, number)
                adapt(
                    objective, optimizer, model, data, rows,
                    steps=STEPS, batch_size=config.data.batch_size, lr=config.optim.lr,
                    seed=config.run.seed, person=number,
                )  # fmt: skip
                scored = objective.evaluate(model, data, data.heldout_rows)
                found.append(Person(index.agents[number].name, _accuracy(scored), None, shots))
        return found

    def records(self, folder: Path, memory: Memory) -> list[Row]:
        """Return the records of the run, and below them a row without a round for each person."""
        people = read_result(folder / PEOPLE, list[Person])
        rows: list[Row] = super().records(folder, memory)
        return rows + [{k: v for k, v in vars(p).items() if v is not None} for p in people]


def _accuracy(stats: Stats) -> float:
    """Return the accuracy that counts: of the combined margin, where there is one."""
    means = stats.means()
    return means.get("combined/accuracies", means["rewards/accuracies"])
