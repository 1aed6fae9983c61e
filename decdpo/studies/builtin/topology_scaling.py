"""Study ``topology-scaling``: rounds to consensus against the spectral gap, 8 to 4096 agents."""

from collections.abc import Sequence
from math import log

from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.builtin.mixing import STARTS, Consensus
from decdpo.studies.cells import Cell
from decdpo.studies.claims import Claim, Slope, Verdict, fit, seed_means
from decdpo.studies.study import Options, Study, pairs_of, training_cells
from decdpo.studies.table import Missing, Row, Table
from decdpo.topology.names import RANDOM

PAPER = "Distributed DPO, abstract"
GRAPHS = (
    "ring",
    "path",
    "star",
    "torus",
    "hypercube",
    "exponential",
    "random_regular",
    "two_clusters",
    "one_peer_exponential",
    "random_matching",
)
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
LARGEST = {"two_clusters": 1024, "random_matching": 512}
"""Graphs whose number of links, or of rounds, grows too fast to go further."""

TRAINED = ("ring", "torus", "hypercube", "exponential", "star", "path")
TRAINED_SIZES = (8, 16, 32, 64)
TARGET = 1e-6


class TopologyScaling(Study):
    """Ten graphs in pure mixing from two starts, and six of them under DecDPO."""

    name = "topology-scaling"
    title = "Rounds to consensus against the spectral gap"
    source = f"{PAPER}: spectral connectivity governs speed and consensus"
    setting = (
        f"mixing: rounds until the squared distance to consensus is {TARGET:g} of its first value; "
        "training: DecDPO, lr 0.1, 40 rounds"
    )
    summary_columns = (
        ("kind", "start", "graph", "agents"),
        ("inverse_gap", "rounds", "consensus_distance", "gap"),
    )
    columns = {
        "cell": "digest that names the cell's folder",
        "kind": "mixing (no gradients) or training (DecDPO)",
        "start": "mixing: random or opposed values at the start",
        "graph": "communication graph, automatic weights",
        "agents": "n",
        "rho": "contraction of the distance to consensus per round; 1 - (1 - rho_tau) / tau of a "
        "schedule that contracts by rho_tau in tau rounds",
        "inverse_gap": "1 / (1 - rho)",
        "rounds": "mixing: rounds to the target",
        "consensus_distance": "training: mean_i ||x_i - x_bar||^2",
    }

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed, graph, size and start, then the training cells."""
        cells = []
        for seed in options.seed_range():
            for start in STARTS:
                for graph in GRAPHS:
                    if start == "opposed" and graph not in RANDOM and seed > 0:
                        continue  # it would be the same
                    for n in SIZES[: 4 if options.quick else None]:
                        if n > LARGEST.get(graph, n):
                            continue
                        place = {"kind": "mixing", "start": start, "graph": graph, "agents": n}
                        work = Consensus(graph, n, seed, start, TARGET)
                        cells.append(Cell({**place, "seed": seed}, work))
        few = 1 if options.quick else None
        for n in () if options.data is not None else TRAINED_SIZES[:few]:
            variants = [
                (
                    {"kind": "training", "graph": g, "agents": n},
                    {
                        "topology.graph": g,
                        "optim.lr": 0.1,
                        "run.rounds": 40,
                        "log.every": 40,
                        "log.gradient_pairs": 16,
                    },
                )
                for g in TRAINED
            ]
            smaller = Options(options.out, options.seeds, False, n, None, options.overrides)
            pairs = pairs_of(smaller, n)
            cells += training_cells(
                smaller, variants, pairs=pairs, seeds=options.seed_range()
            )
        return cells

    def derive(self, table: Table) -> None:
        """Add 1 / (1 - rho) to the training cells, beside the gap."""
        super().derive(table)
        for row in table.rows:
            if row["kind"] == "training" and row.get("rho") is not None:
                row["inverse_gap"] = 1 / (1 - row["rho"])

    def summary_rows(self, table: Table) -> Table:
        """Return every third size; the others are in final.csv."""
        return Table(r for r in table.final().rows if r["agents"] in SIZES[::3])

    def claims(self) -> Sequence[Claim]:
        """Return the fits of rounds, and of the consensus distance, against 1 / (1 - rho)."""
        return (
            Claim(
                PAPER,
                "rounds to consensus grow as 1 / (1 - rho) from opposed camps: slope 1 ± 0.1",
                lambda t: proportional(t, "opposed"),
            ),
            Claim(
                PAPER,
                "rounds to consensus grow as 1 / (1 - rho) from random values: slope 1 ± 0.1",
                lambda t: proportional(t, "random"),
            ),
            Claim(
                "theory of gossip",
                "the rounds stay below ln(1 / target) / (2 ln(1 / rho)) + 1",
                below_bound,
            ),
            Claim(
                f"{PAPER}; theory of decentralized SGD",
                "DecDPO: the consensus distance grows with 1 / (1 - rho), with an exponent from 1 "
                "(noise) to 2 (heterogeneity)",
                training_exponent,
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return rounds against 1 / (1 - rho) for both starts, and DecDPO's distance."""
        panels = []
        for start in STARTS:
            source = table.where(kind="mixing", start=start)
            title = f"pure mixing, {start} start"
            label = "rounds to consensus"
            panels.append(_scatter(source, GRAPHS, "rounds", title, label, lambda x: x * _least()))
        trained = table.where(kind="training").final()
        panels.append(
            _scatter(
                trained, TRAINED, "consensus_distance", "DecDPO after 40 rounds",
                "consensus distance", None,
            )
        )  # fmt: skip
        return (Figure(self.name, tuple(panels)),)


def _least() -> float:
    """Return the rounds per 1 / (1 - rho) of the slowest mode: ln(1 / target) / 2."""
    return log(1 / TARGET) / 2


def _scatter(
    source: Table, graphs: Sequence[str], y: str, title: str, label: str, guide: object
) -> Panel:
    """Return a panel of y against 1 / (1 - rho), a point for each graph and size."""
    lines = []
    for graph in graphs:
        points = []
        for n in source.where(graph=graph).values("agents"):
            rows = [r for r in source.where(graph=graph, agents=n).rows if r.get(y)]
            if rows:
                x = sum(r["inverse_gap"] for r in rows) / len(rows)
                points.append((x, [float(r[y]) for r in rows]))
        if points:
            lines.append(Line.of(graph, sorted(points), "points"))
    xs = [x for line in lines for x in line.x]
    if callable(guide) and xs:
        ends = [(x, [guide(x)]) for x in (min(xs), max(xs))]
        lines.append(Line.of("slope 1: ln(1/target) / (2 (1 - rho))", ends, "dashed"))
    return Panel(title, "1 / (1 - rho)", label, tuple(lines), log_x=True, log_y=True)


def _points(table: Table, start: str) -> list[Row]:
    rows = [r for r in table.where(kind="mixing", start=start).rows if r.get("rounds")]
    if not rows:
        raise Missing(f"no mixing cell from {start} values is finished")
    return rows


def _fit(points: Sequence[Row], y: str) -> Slope:
    return fit([r["inverse_gap"] for r in points], [r[y] for r in points])


def proportional(table: Table, start: str) -> Verdict:
    """Fit ln(rounds) against ln 1 / (1 - rho), a point for each graph and number of agents.

    Held if the slope's whole interval is 1 within 0.1; whether it includes 1 is said besides.
    """
    points = seed_means(_points(table, start), ("graph", "agents"), ("inverse_gap", "rounds"))
    slope = _fit(points, "rounds")
    slow = [r for r in points if r["inverse_gap"] >= 10]
    numbers = f"slope {slope}, the seeds of a graph being one point"
    if len({r["inverse_gap"] for r in slow}) >= 3:
        numbers += f"; with 1 / (1 - rho) of 10 and more: {_fit(slow, 'rounds')}"
    inside = slope.low <= 1 <= slope.high
    why = {
        "random": "Random values have little of the slowest mode, a share of about 1/n: the "
        "target is met by faster ones, or after fewer rounds, the more so the more agents there "
        "are.",
        "opposed": "1 / (1 - rho) counts the slowest mode alone. Fast graphs end after a few whole "
        "rounds, and where rho is not near 1, ln(1 / rho) is not 1 - rho.",
    }[start]
    return Verdict(
        slope.within(0.9, 1.1),
        numbers,
        "" if inside else f"The interval does not include 1. {why}",
    )


def below_bound(table: Table) -> Verdict:
    """Check ||x_t|| <= rho^t ||x_0|| on every cell with a static graph."""
    rows = [
        r
        for start in STARTS
        for r in _points(table, start)
        if r["graph"] not in ("one_peer_exponential", "random_matching") and 0 < r["rho"] < 1
    ]
    bounds = [log(1 / TARGET) / (-2 * log(r["rho"])) + 1 for r in rows]
    worst = max(r["rounds"] / b for r, b in zip(rows, bounds, strict=True))
    return Verdict(worst <= 1, f"largest rounds / bound {worst:.4f} over {len(rows)} cells")


def training_exponent(table: Table) -> Verdict:
    """Fit DecDPO's final consensus distance against 1 / (1 - rho), a point per graph and size."""
    rows = [r for r in table.where(kind="training").final().rows if r.get("inverse_gap")]
    points = seed_means(rows, ("graph", "agents"), ("inverse_gap", "consensus_distance"))
    slope = _fit(points, "consensus_distance")
    return Verdict(
        slope.within(1, 2),
        f"exponent {slope}, the seeds of a graph being one point",
        "It lies below the stationary state's 1 to 2 where 40 rounds are fewer than 1 / (1 - rho): "
        "the distance is then limited by what the agents have moved at all."
        if slope.value < 1
        else "",
    )
