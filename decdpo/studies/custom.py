"""A study of one's own: a base configuration and a grid, in a TOML file.

    title = "Step size and graph"
    base = "run.toml"                     # or a table [base] with its sections
    seeds = 5
    y = "gap"                             # what is drawn and tabulated; any column of table.csv
    x = "round"                           # or a key of the grid: then final values are drawn
    hue = "topology.graph"                # a key of the grid; one curve for each of its values

    [grid]
    "optim.lr" = [0.01, 0.1]
    "topology.graph" = ["ring", "complete"]

Every combination of the grid's values is run with every seed 0, 1, ... as ``run.seed``, on the
shards of ``data.shards`` unless `--data` names others.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from decdpo.config import parse_override
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError
from decdpo.files import os_fault, read_text
from decdpo.report.canvas import plain
from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import Claim
from decdpo.studies.data import Pairs, Sharded
from decdpo.studies.study import PLACED, Options, Study, require_free, training
from decdpo.studies.table import Table

KEYS = ("title", "base", "seeds", "x", "y", "hue", "grid")
NOT_VARIED = {
    "run.seed": "write seeds = N in place of it, for the seeds 0 ... N - 1",
    "data.shards": "write it into the base, or give --data",
}
"""Keys that the study sets in every cell by itself, with what to do in place of a grid."""

LOGARITHMIC = ("gap", "gradient_norm", "consensus_distance")


@dataclass(frozen=True)
class Grid:
    """What the TOML file says.

    base : {"section.key": value}. grid : {"section.key": values}.
    """

    path: Path
    title: str
    base: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    seeds: int
    x: str
    y: str
    hue: str | None


class Custom(Study):
    """The study that a TOML file describes."""

    def __init__(self, plan: Grid) -> None:
        self.plan = plan
        self.name = plan.path.stem
        self.title = plan.title
        self.source = f"nothing; described by {plan.path.name}"

    @property
    def summary_columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The grid's keys and the quantity asked for."""
        more = ("gap", "loss", "consensus_distance", "heldout/average/accuracy")
        return tuple(self.plan.grid), tuple(dict.fromkeys((self.plan.y, *more)))

    def pairs(self, options: Options) -> Pairs:
        """Return the user's pairs, else the base's shards."""
        if options.data is not None:
            return options.data
        folder = self.plan.base.get("data.shards", "")
        for section, key, value in map(parse_override, options.overrides):
            folder = value if (section, key) == ("data", "shards") else folder
        if not folder:
            raise ConfigError(
                f"{self.plan.path} names no data",
                "set data.shards in the base, or give --data",
            )
        return Sharded((Path(str(folder)),))

    def describe_data(self, options: Options) -> str:
        """Return one line on the pairs."""
        return self.pairs(options).describe()

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for every seed and combination.

        Raises ``ConfigError`` for an option that would make the grid's labels untrue.
        """
        self._require_grid(options)
        pairs = self.pairs(options)
        overrides = [o for o in options.overrides if parse_override(o)[:2] != ("data", "shards")]
        cells = []
        for seed in options.seed_range(self.plan.seeds):
            index: ShardIndex = pairs.shards(seed, options.room)
            for values in product(*self.plan.grid.values()):
                labels = dict(zip(self.plan.grid, values, strict=True))
                settings = {"log.gradient_pairs": 0, **self.plan.base, **labels, "run.seed": seed}
                if options.quick and "run.rounds" not in labels:
                    settings["run.rounds"] = max(int(settings.get("run.rounds", 200)) // 4, 1)
                if options.agents is not None:
                    settings["agents.count"] = options.agents
                settings["data.shards"] = str(index.folder)
                place = {**labels, "seed": seed}
                cells.append(Cell(place, training(settings, overrides, index.digest, place)))
        return cells

    def _require_grid(self, options: Options) -> None:
        """Refuse what would change the grid, or what another option would overrule."""
        plan = self.plan
        if options.agents is not None and "agents.count" in plan.grid:
            raise ConfigError(
                f"--agents {options.agents} would override agents.count in the grid of {plan.path}",
                "leave it out, or change the grid",
            )
        given = {"data.shards": options.data, "agents.count": options.agents, "run.seed": True}
        taken = {key: PLACED[key] for key, value in given.items() if value is not None}
        remedy = f"leave it out, or change the grid of {plan.path}"
        require_free(options.overrides, {**taken, **dict.fromkeys(plan.grid, remedy)})

    def claims(self) -> Sequence[Claim]:
        """Return no claims."""
        return ()

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return one panel: y over rounds, or final y over a key of the grid."""
        plan = self.plan
        over_rounds = plan.x == "round"
        source = table if over_rounds else table.final()
        names = table.values(plan.hue) if plan.hue else [None]
        lines = []
        for name in names:
            chosen = source.where({plan.hue: name}) if plan.hue else source
            points = chosen.curve(plan.x, plan.y)
            if points:
                label = plain(f"{plan.hue} = {name}" if plan.hue else plan.y)
                about = str(name) if plan.hue == "topology.graph" else ""
                lines.append(Line.of(label, points, about=about))
        xs = [x for line in lines for x in line.x]
        wide = not over_rounds and bool(xs) and min(xs) > 0 and max(xs) >= 10 * min(xs)
        panel = Panel(
            plain(plan.title), plan.x, plan.y, tuple(lines), log_x=wide, log_y=plan.y in LOGARITHMIC
        )
        return (Figure(self.name, (panel,)),)


def load(path: Path) -> Custom:
    """Read and check a TOML file; see the module.

    Raises ``ConfigError`` naming the key.
    """
    tree = _read(path)
    unknown = [key for key in tree if key not in KEYS]
    if unknown:
        raise ConfigError(
            f"{path}: {unknown[0]} is not a key of a study", f"the keys are {', '.join(KEYS)}"
        )
    base = tree.get("base", {})
    if isinstance(base, str):
        base = _read(path.parent / base)
    grid = tree.get("grid", {})
    if not isinstance(grid, dict) or not grid:
        raise ConfigError(f"{path} has no [grid]", 'write [grid] and "optim.lr" = [0.01, 0.1]')
    for key, values in grid.items():
        if "." not in key or not isinstance(values, list) or not values:
            raise ConfigError(
                f"{path}: grid key {key!r} = {values!r}",
                'write "section.key" = [value, value], the key in quotes',
            )
        if key in NOT_VARIED:
            raise ConfigError(f"{path}: {key} cannot be in the grid", NOT_VARIED[key])
    plan = Grid(
        path=path,
        title=str(tree.get("title", path.stem)),
        base={f"{s}.{k}": v for s, table in base.items() for k, v in _section(path, s, table)},
        grid=grid,
        seeds=_whole(path, tree.get("seeds", 5)),
        x=str(tree.get("x", "round")),
        y=str(tree.get("y", "gap")),
        hue=tree.get("hue"),
    )
    for name, value in (("hue", plan.hue), ("x", plan.x)):
        if value is not None and value not in grid and (name, value) != ("x", "round"):
            raise ConfigError(
                f"{path}: {name} = {value!r} is not a key of the grid",
                f"choose one of {', '.join(grid)}",
            )
    return Custom(plan if plan.hue or len(grid) > 1 else replace(plan, hue=_only(plan)))


def _only(plan: Grid) -> str | None:
    key = next(iter(plan.grid))
    return None if plan.x == key else key


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path, "utf-8-sig"))
    except OSError as fault:
        raise os_fault(
            fault, f"cannot read {path}", remedy="give the path of a TOML file", kind=ConfigError
        ) from None
    except (ValueError, RecursionError) as fault:
        raise ConfigError(f"{path} is not valid TOML: {fault}", "mend that line") from None


def _section(path: Path, name: str, table: Any) -> list[tuple[str, Any]]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} of the base is no section", f"write [base.{name}]")
    return list(table.items())


def _whole(path: Path, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ConfigError(f"{path}: seeds = {value!r}", "give a number of seeds, 1 or more")
    return value
