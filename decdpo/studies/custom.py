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

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from reprlib import repr as shown
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from decdpo.config import parse_override
from decdpo.config.options import nearest
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError
from decdpo.files import Malformed, checked, os_fault, read_text
from decdpo.report.canvas import plain
from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import Claim
from decdpo.studies.data import Pairs, Sharded
from decdpo.studies.study import PLACED, Options, Study, require_free, training
from decdpo.studies.table import Table

T = TypeVar("T")
Value = str | int | float | bool | list[str | int | float | bool]
Sections = dict[str, dict[str, Value]]
Varied = dict[
    Annotated[str, Meta(pattern=r"^[^.]+\.[^.]+$")], Annotated[list[Value], Meta(min_length=1)]
]
"""A line of the grid."""


@dataclass(frozen=True)
class StudyFile:
    """The keys of the TOML file, their types and ranges."""

    grid: Annotated[dict[str, Any], Meta(min_length=1)]
    title: str | None = None
    base: str | Sections = field(default_factory=dict)
    seeds: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 5
    x: str = "round"
    y: str = "gap"
    hue: str | None = None


REMEDIES = {
    "grid": 'write [grid] and lines such as "optim.lr" = [0.01, 0.1], the key in quotes',
    "base": 'write base = "run.toml", or [base.SECTION] and its keys',
    "seeds": "give a number of seeds, 1 or more",
}
"""How to mend a key; any other is a text."""

NOT_VARIED = {
    "run.seed": "write seeds = N in place of it, for the seeds 0 ... N - 1",
    "data.shards": "write it into the base, or give --data",
}
"""Keys that the study sets in every cell by itself, with what to do in place of a grid."""

LOGARITHMIC = ("gap", "gradient_norm", "consensus_distance")

OF_GRADIENTS = ("gap", "gap_tail", "gradient_norm")
"""Columns for which gradients are measured, of all training pairs unless the base says how many."""


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
                # Else by the policy: that of a language model would take longer than its training.
                given = {"log.gradient_pairs": 0} if self.plan.y in OF_GRADIENTS else {}
                settings = {**given, **self.plan.base, **labels, "run.seed": seed}
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
    keys = [f.name for f in fields(StudyFile)]
    unknown = [key for key in tree if key not in keys]
    if unknown:
        raise ConfigError(
            f"{path}: {unknown[0]} is not a key of a study{nearest(unknown[0], keys)}",
            f"the keys are {', '.join(keys)}",
        )
    said = _checked(path, tree, StudyFile)
    base = said.base
    if isinstance(base, str):
        other = path.parent / base
        base = _checked(other, _read(other), Sections)
    for key, values in said.grid.items():
        _checked(path, {key: values}, Varied, f"grid key {key!r} = {shown(values)}")
        if key in NOT_VARIED:
            raise ConfigError(f"{path}: {key} cannot be in the grid", NOT_VARIED[key])
    plan = Grid(
        path=path,
        title=path.stem if said.title is None else said.title,
        base={f"{s}.{k}": v for s, table in base.items() for k, v in table.items()},
        grid=said.grid,
        seeds=said.seeds,
        x=said.x,
        y=said.y,
        hue=said.hue,
    )
    for name, value in (("hue", plan.hue), ("x", plan.x)):
        if value is not None and value not in plan.grid and (name, value) != ("x", "round"):
            raise ConfigError(
                f"{path}: {name} = {value!r} is not a key of the grid",
                f"choose one of {', '.join(plan.grid)}",
            )
    return Custom(plan if plan.hue or len(plan.grid) > 1 else replace(plan, hue=_only(plan)))


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


def _checked(path: Path, tree: dict[str, Any], kind: type[T], what: str = "") -> T:
    """Return what a file says as ``kind``; ``what`` is named if it is of another form."""
    try:
        return checked(tree, kind)
    except Malformed as fault:
        found = re.search(r"\$\.(\w+)|field `(\w+)`", str(fault))
        key = "grid" if what else (found[1] or found[2]) if found else ""
        if not what and key in tree:
            what = f"{key} = {shown(tree[key])}"
        remedy = REMEDIES.get(key, "write what is expected there, texts in quotes")
        raise ConfigError(": ".join(filter(None, [str(path), what, str(fault)])), remedy) from None
