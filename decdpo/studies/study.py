"""What a study is: a grid of cells, and what its table is asked.

A built-in study is a subclass of ``Study`` in a file of its own: it says which cells there are,
which claims of its source the tidy table is to be asked, and which curves to draw.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decdpo.config import parse_override
from decdpo.config.schema import WITHOUT_TOPOLOGY
from decdpo.data.synthetic import Choices, Users
from decdpo.errors import ConfigError
from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell, Training, make_config
from decdpo.studies.claims import Claim
from decdpo.studies.data import Pairs, Synthetic
from decdpo.studies.table import Row, Table
from decdpo.topology.names import RANDOM

Labels = Mapping[str, Any]
Settings = Mapping[str, Any]

COLUMNS = {
    "cell": "digest that names the cell's folder",
    "seed": "seed of data, graph and batches",
    "round": "rounds of communication done",
    "gap": "squared gradient norm of the average model, over its value at round 0",
    "gap_tail": "mean of gap over the last quarter of the rounds, on a cell's last row",
    "gradient_norm": "||grad L(x_bar)||, over all training pairs",
    "loss": "training loss of the agents' own models on the round's batches",
    "consensus_distance": "mean_i ||x_i - x_bar||^2",
    "heldout/accuracy": "own models on own held-out pairs",
    "heldout/average/accuracy": "the average model on all held-out pairs",
}
"""Columns that every table of training cells has; the others are those of metrics.jsonl."""


PLACED = {
    "run.seed": "leave it out; --seeds N takes the seeds 0 ... N - 1",
    "data.shards": "leave it out; --data names other shards",
    "agents.count": "leave it out; --agents says how many",
}
"""Keys that a study decides on by itself, with what to give in place of an override."""


@dataclass(frozen=True)
class Options:
    """What the user of a study chooses.

    out : its folder. seeds : how many; None for the study's own number. quick : a smaller version
    that only shows that it works. agents : n, None for the study's own. data : other pairs than
    synthetic ones, or None. overrides : "section.key=value" for every cell.
    """

    out: Path
    seeds: int | None = None
    quick: bool = False
    agents: int | None = None
    data: Pairs | None = None
    overrides: tuple[str, ...] = field(default=())

    @property
    def room(self) -> Path:
        """The folder for shards that the study makes."""
        return self.out / "data"

    def seed_range(self, usual: int = 5) -> range:
        """Return the seeds: as many as asked for, else two if quick, else the usual number."""
        return range(self.seeds or (2 if self.quick else usual))


class Study(ABC):
    """A grid of cells with its claims and figures."""

    name: str
    title: str
    source: str
    """What it reproduces."""
    agents = 16
    """n, unless the user says otherwise."""
    partition = "iid"
    """How source files are dealt out unless the user says otherwise."""
    columns: Mapping[str, str] = COLUMNS
    setting = ""
    """What the reader must know of the grid to judge the numbers."""

    @abstractmethod
    def cells(self, options: Options) -> list[Cell]:
        """Return the grid, seed by seed; makes the shards that are not there yet.

        Raises a ``DecdpoError`` if the options make no sense.
        """

    @abstractmethod
    def claims(self) -> Sequence[Claim]:
        """Return what the source says."""

    @abstractmethod
    def figures(self, table: Table) -> Sequence[Figure]:
        """Return the pictures of the table."""

    @property
    @abstractmethod
    def summary_columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The labels that make the rows of the summary's table, and the numbers in its columns."""

    def summary_rows(self, table: Table) -> Table:
        """Return the rows that the summary's table is about: the last of every cell."""
        return table.final()

    def derive(self, table: Table) -> None:
        """Add columns that follow from others: ``gap`` and ``gap_tail``."""
        runs: dict[str, list[Row]] = {}
        for row in table.rows:
            if row.get("gradient_norm") is not None and "round" in row:
                runs.setdefault(row["cell"], []).append(row)
        for rows in runs.values():
            first, last = rows[0]["gradient_norm"], rows[-1]
            for row in rows if first else ():
                row["gap"] = (row["gradient_norm"] / first) ** 2
            tail = [r["gap"] for r in rows if 4 * r["round"] > 3 * last["round"] and "gap" in r]
            if tail:
                last["gap_tail"] = sum(tail) / len(tail)

    def describe_data(self, options: Options) -> str:
        """Return one line on the pairs."""
        return pairs_of(options, self.agents).describe()


def pairs_of(options: Options, agents: int = Study.agents, **changes: Any) -> Pairs:
    """Return the user's pairs, else synthetic users who choose, changed by ``changes``."""
    if options.data is not None:
        return options.data
    return Synthetic(usual_users(options, agents, **changes))


def num_agents(options: Options, pairs: Pairs) -> int:
    """Return n."""
    return options.agents or pairs.shards(0, options.room).num_agents


def usual_users(options: Options, agents: int = Study.agents, **changes: Any) -> Users:
    """Return synthetic users, half as many if quick, with 131 training and 16 held-out pairs each.

    131 is prime: with a divisor of it as batch size, every agent's epochs would end in the same
    recorded rounds, where the noise of batches drawn without replacement cancels.
    """
    few = max(agents // 2, 1) if options.quick else agents
    fields: dict[str, Any] = {
        "agents": options.agents or few,
        "pairs": 147,
        "holdout": 16 / 147,
        "kappa": 1.0,
    }
    return Choices(**{**fields, **changes})


def usual_lr(pairs: Pairs) -> float:
    """Return the step size of studies that do not vary it: 0.1 on columns, 1 on texts.

    Both are a fraction of the inverse smoothness under the usual settings: 0.1 to 0.3.
    """
    return 1.0 if pairs.text else 0.1


def usual_settings(options: Options, pairs: Pairs) -> dict[str, Any]:
    """Return the base of every training cell: 80 rounds, recorded every fourth.

    Columns of features are trained on in float64 with beta = 1, the scale at which rewards of
    length about one are learnt; texts with the product's own defaults.
    """
    settings: dict[str, Any] = {
        "run.rounds": 20 if options.quick else 80,
        "log.every": 4,
        "log.gradient_pairs": 0,
        "data.batch_size": 16,
        # Also of a language model: plain steps are what the claims are about.
        "optim.kind": "sgd",
    }
    if not pairs.text:
        settings |= {"policy.features": "columns", "policy.dtype": "float64", "loss.beta": 1.0}
    return settings


def training_cells(
    options: Options,
    variants: Sequence[tuple[Labels, Settings]],
    *,
    pairs: Pairs | None = None,
    seeds: range | None = None,
    common: Labels | None = None,
) -> list[Cell]:
    """Return one training cell for each seed and variant.

    variants : the labels of a cell, and its settings beyond the usual ones. pairs : by default the
    user's, or the usual synthetic users. common : labels of all cells.

    Raises ``ConfigError`` for an override of what the variants differ in, or of ``PLACED``.
    """
    pairs = pairs or pairs_of(options)
    base = usual_settings(options, pairs)
    grid = varied([{**base, **settings} for _, settings in variants])
    remedy = "leave it out, or run a grid of your own: decdpo study FILE.toml"
    require_free(options.overrides, {**dict.fromkeys(grid, remedy), **PLACED})
    cells = []
    for seed in seeds if seeds is not None else options.seed_range():
        index = pairs.shards(seed, options.room)
        where = {"data.shards": str(index.folder), "run.seed": seed}
        for labels, settings in variants:
            wanted = {**base, **settings, **where}
            if options.agents is not None:
                wanted["agents.count"] = options.agents
            if wanted.get("topology.graph") in RANDOM:
                wanted["topology.seed"] = seed
            place = {**(common or {}), **labels, "seed": seed}
            cells.append(Cell(place, training(wanted, options.overrides, index.digest, place)))
    return cells


def varied(variants: Sequence[Settings]) -> list[str]:
    """Return the keys in which the variants differ, those of the topology where there is one."""
    found = []
    for key in dict.fromkeys(key for settings in variants for key in settings):
        values = [v.get(key) for v in variants if _uses(v.get("algorithm.kind", "dsgd"), key)]
        if any(value != values[0] for value in values):
            found.append(key)
    return found


def require_free(overrides: Sequence[str], taken: Mapping[str, str]) -> None:
    """Refuse an override that would make the labels of cells untrue.

    taken : the keys that the study chooses for each cell, with the remedy for an override.
    """
    for override in overrides:
        section, key, _ = parse_override(override)
        name = f"{section}.{key}"
        if name in taken:
            raise ConfigError(
                f"--set {override!r} would override {name}, which the study chooses for each cell: "
                "the table would not say what was run",
                taken[name],
            )


def training(
    settings: Settings, overrides: Sequence[str], digest: str, labels: Labels
) -> Training:
    """Return the training run with these settings, checked.

    Overrides of the topology pass by the algorithms that have none. Raises ``ConfigError`` naming
    the cell.
    """
    require_free(overrides, {key: PLACED[key] for key in ("run.seed", "data.shards")})
    given = {f"{section}.{key}": value for section, key, value in map(parse_override, overrides)}
    kind = given.get("algorithm.kind", settings.get("algorithm.kind", "dsgd"))
    used = tuple(o for o in overrides if _uses(kind, o.strip()))
    try:
        return Training(make_config(settings, used), digest)
    except ConfigError as fault:
        name = ", ".join(f"{k} {v}" for k, v in labels.items())
        raise ConfigError(f"cell {name}: {fault.what}", fault.remedy) from None


def _uses(kind: Any, key: str) -> bool:
    """Say whether an algorithm has a use for the section of ``key``."""
    return kind not in WITHOUT_TOPOLOGY or not key.startswith("topology.")


def curves(
    table: Table, hue: Sequence[tuple[str, Labels]], y: str, x: str = "round"
) -> Iterator[Line]:
    """Yield the curve of y over x of every (legend, labels) that has any, with its range."""
    for legend, labels in hue:
        points = [(at, values) for at, values in table.where(labels).curve(x, y)]
        if points:
            yield Line.of(legend, points)


def gap_panel(
    table: Table, hue: Sequence[tuple[str, Labels]], title: str = "squared gradient norm"
) -> Panel:
    """Return the papers' picture: the normalised squared gradient norm over the rounds."""
    lines = tuple(curves(table, hue, "gap"))
    label = r"$\|\nabla L(\bar{x})\|^2$ / first value"
    return Panel(title, "round", label, lines, log_y=True)


def distance_panel(
    table: Table, hue: Sequence[tuple[str, Labels]], title: str = "consensus distance"
) -> Panel:
    """Return the consensus distance over the rounds, where it is more than rounding."""
    lines = tuple(curves(table.above("consensus_distance", 1e-20), hue, "consensus_distance"))
    return Panel(title, "round", "mean squared distance", lines, log_y=True)
