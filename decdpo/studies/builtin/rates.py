"""Study ``rates``: the predicted bounds, with measured constants, over the measured curves.

For every seed the constants L, kappa^2, zeta^2 and the initial gap are measured at the start. The
bounds of ``decdpo.theory.bounds`` are of the mean of ||grad L(x_bar)||^2 over the models that the
rounds so far began from; ``mean_gradient_sq`` is that mean, and ``ratio`` the bound over it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from decdpo.files import replacing
from decdpo.metrics.evaluation import average_model
from decdpo.report.looks import subject
from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell, Memory, Training, read_result
from decdpo.studies.claims import (
    OURS,
    Claim,
    Verdict,
    all_of,
    compare,
    mean_of,
    rank_correlation,
    within,
)
from decdpo.studies.study import Options, Study, pairs_of, training_cells, usual_lr
from decdpo.studies.table import Missing, Row, Table
from decdpo.theory.bounds import Bound, Problem, decentralized, federated
from decdpo.theory.constants import Constants, measure
from decdpo.theory.series import mean_over_rounds

PAPER = "Distributed DPO, Theorem 5.1"
METHODS: dict[str, dict[str, Any]] = {
    "FedDPO E=1": {"algorithm.kind": "fedavg", "algorithm.local_steps": 1},
    "FedDPO E=3": {"algorithm.kind": "fedavg", "algorithm.local_steps": 3},
    "FedDPO E=6": {"algorithm.kind": "fedavg", "algorithm.local_steps": 6},
    "DecDPO complete": {"topology.graph": "complete"},
    "DecDPO exponential": {"topology.graph": "exponential"},
    "DecDPO ring": {"topology.graph": "ring"},
}
RATES = (0.1, 1.0, 10.0)
"""Step sizes, over the usual one."""

LOOSE = {
    "initial": "2 Delta / (eta E R) (which takes all of Delta to be gained in these rounds)",
    "noise": "the noise of the gradients",
    "drift": "the drift of unlike users (on a graph the worst case: all along its slowest mode)",
    "drift_noise": "the noise that moves agents apart",
}
"""The terms of both bounds, in words."""


@dataclass(frozen=True)
class MeasuredConstants(Training):
    """The constants of the theory at the start of a training run, in place of the run."""

    def finished(self, folder: Path) -> bool:
        """Say whether they are there."""
        return (folder / "constants.json").exists()

    def run(self, folder: Path, memory: Memory) -> None:
        """Measure them on all training pairs."""
        with self.prepared(memory) as run:
            mean = average_model(run.world, run.agents)
            data = {a.id: a.data for a in run.agents}
            found = measure(run.world, run.objective, mean, data, run.batch_size)
        with replacing(folder / "constants.json", mode=0o644) as partial:
            partial.write_text(json.dumps(found.to_json()) + "\n", encoding="utf-8")

    def records(self, folder: Path, memory: Memory) -> list[Row]:
        """Return one record."""
        return [read_result(folder / "constants.json", Constants).to_json()]


class Rates(Study):
    """Six methods at three step sizes, each with its bound."""

    name = "rates"
    title = "Predicted rates over measured curves"
    source = f"{PAPER}, and the standard rate of decentralized SGD"
    setting = (
        "step sizes 0.01, 0.1 and 1 (0.1, 1 and 10 on texts), all agents take part; the constants "
        "are measured at the start of every seed"
    )
    summary_columns = (
        ("method", "lr"),
        ("mean_gradient_sq", "bound", "ratio", "initial", "noise", "drift", "drift_noise", "limit"),
    )
    columns = {
        **Study.columns,
        "mean_gradient_sq": "mean of gradient_norm^2 over rounds 0 ... round - 1, linear between "
        "the records",
        "bound": "the predicted bound on it, the sum of initial, noise, drift, drift_noise",
        "ratio": "bound / mean_gradient_sq",
        "limit": "largest step size for which the bound is claimed",
        "smoothness, smoothness_max, kappa_sq, zeta_sq, gap": "measured constants, in the rows of "
        "method constants",
    }

    def cells(self, options: Options) -> list[Cell]:
        """Return the constants and a cell for each seed, method and step size."""
        pairs = pairs_of(options)
        variants: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (
                {"method": name, "lr": factor * usual_lr(pairs)},
                # Every round: the mean hangs on the first ones, where the curves are steepest.
                {"optim.lr": factor * usual_lr(pairs), "log.every": 1, **settings},
            )
            for factor in RATES
            for name, settings in METHODS.items()
        ]
        cells = training_cells(options, variants, pairs=pairs)
        seen: dict[int, Cell] = {}
        for cell in cells:
            seen.setdefault(cell.labels["seed"], cell)
        constants = []
        for seed, cell in seen.items():
            assert isinstance(cell.work, Training)
            work = MeasuredConstants(cell.work.config, cell.work.data)
            constants.append(Cell({"method": "constants", "lr": None, "seed": seed}, work))
        return constants + cells

    def derive(self, table: Table) -> None:
        """Add the running mean, the bound and its terms to every record of a run."""
        constants = {r["seed"]: r for r in table.rows if r["method"] == "constants"}
        series: dict[str, tuple[list[int], list[float]]] = {}
        for row in table.rows:
            known = constants.get(row["seed"])
            if row["method"] == "constants" or known is None:
                continue
            rounds, squares = series.setdefault(row["cell"], ([], []))
            rounds.append(row["round"])
            squares.append(row["gradient_norm"] ** 2)
            if row["round"] == 0:
                continue
            row["mean_gradient_sq"] = mean_over_rounds(rounds, squares)
            bound = predict(problem_of(known), row)
            row.update(bound.terms, bound=bound.total, limit=bound.step_limit)
            row["ratio"] = row["bound"] / row["mean_gradient_sq"]

    def claims(self) -> Sequence[Claim]:
        """Return whether the bounds hold, are tight, and rank choices as measured."""
        return (
            Claim(
                PAPER,
                "the FedDPO bound is above the measured mean where it is claimed",
                lambda t: above(t, "Fed"),
            ),
            Claim(
                "theory of decentralized SGD",
                "the DecDPO bound is above the measured mean where it is claimed",
                lambda t: above(t, "Dec"),
            ),
            Claim(
                OURS,
                "for every choice the bound is above the measured mean, by a factor of 10 at most",
                tight,
            ),
            Claim(
                OURS,
                "the bounds rank the 18 choices as measured (rank correlation above 0.8)",
                ranks,
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return measured and predicted means over the rounds, a panel for each step size."""
        panels = []
        for lr in sorted(table.where(method="FedDPO E=1").values("lr")):
            lines = []
            for name in ("FedDPO E=1", "FedDPO E=6", "DecDPO ring"):
                rows = table.where(method=name, lr=lr)
                for key, style in (("mean_gradient_sq", "line"), ("bound", "dashed")):
                    points = rows.curve("round", key)
                    if points:
                        legend = name if style == "line" else f"{name}, bound"
                        lines.append(Line.of(legend, points, style, subject(name)))
            label = r"mean of $\|\nabla L(\bar{x})\|^2$ so far"
            panels.append(Panel(f"eta = {lr:g}", "rounds R", label, tuple(lines), log_y=True))
        return (Figure(self.name, tuple(panels)),)


def problem_of(constants: Mapping[str, Any]) -> Problem:
    """Return what the bounds need of the record of ``MeasuredConstants``."""
    return Problem.of(constants)


def predict(problem: Problem, row: Mapping[str, Any]) -> Bound:
    """Return the bound on a run's mean squared gradient norm after ``row["round"]`` rounds."""
    settings = METHODS[row["method"]]
    if settings.get("algorithm.kind") == "fedavg":
        steps = settings["algorithm.local_steps"]
        return federated(problem, row["lr"], row["round"], steps)
    return decentralized(problem, row["lr"], row["round"], 1, row["rho"])


def _runs(table: Table, kind: str = "") -> list[Row]:
    found = [r for r in table.final().rows if r.get("ratio") and r["method"].startswith(kind)]
    if not found:
        raise Missing("no run with measured constants is finished")
    return found


def above(table: Table, kind: str) -> Verdict:
    """Check ratio >= 1 at every record of every run whose step is within the bound's limit."""
    ids = {r["cell"] for r in _runs(table, kind)}
    rows = [r for r in table.rows if r["cell"] in ids and r.get("ratio")]
    inside = [r for r in rows if r["lr"] <= r["limit"]]
    outside = [r for r in rows if r["lr"] > r["limit"]]
    if not inside:
        raise Missing("no run has a step size within the limit of the bound")
    least = min(r["ratio"] for r in inside)
    numbers = f"least bound / measured {least:.3g} over {len(inside)} records"
    if outside:
        numbers += (
            f"; beyond the limit of the step {min(r['ratio'] for r in outside):.3g} "
            f"over {len(outside)}"
        )
    return Verdict(least >= 1, numbers)


def tight(table: Table) -> Verdict:
    """Say how far the bounds are above the measured means at the end, choice by choice."""
    final = Table(_runs(table))
    outcomes, parts, loose = [], [], dict.fromkeys(LOOSE, 0)
    for lr in sorted(final.values("lr")):
        texts = []
        for method in final.where(lr=lr).values("method"):
            runs = final.where(lr=lr, method=method)
            ratios = runs.by_seed("ratio")
            found = compare(ratios, dict.fromkeys(ratios, 1.0))
            # A bound below what it bounds is not tight but wrong.
            close = within(found.low, found.high, 1.0, 10.0)
            outcomes.append(close)
            texts.append(f"{method} {np.median(list(ratios.values())):.3g}")
            if close is False and found.low > 10:
                loose[max(LOOSE, key=lambda term: np.mean(list(runs.by_seed(term).values())))] += 1
        parts.append(f"eta {lr:g}: " + ", ".join(texts))
    why = [f"for {number} choices {LOOSE[term]}" for term, number in loose.items() if number]
    return Verdict(
        all_of(outcomes),
        "median bound / measured at the end: " + "; ".join(parts),
        f"Beyond 10 times, the largest term of the bound is {', '.join(why)}." if why else "",
    )


def ranks(table: Table) -> Verdict:
    """Correlate the ranks of predicted and measured means over the choices, seed by seed."""
    rows = _runs(table)
    choices = dict.fromkeys((r["method"], r["lr"]) for r in rows)
    found: dict[int, float] = {}
    for seed in sorted({r["seed"] for r in rows}):
        own = [r for r in rows if r["seed"] == seed]
        if len(own) == len(choices) > 2:
            found[seed] = rank_correlation(own, "bound", "mean_gradient_sq")
    if not found:
        raise Missing("no seed has three or more choices, all of them finished")
    mean = {
        key: [np.mean([r[key] for r in rows if (r["method"], r["lr"]) == c]) for c in choices]
        for key in ("bound", "mean_gradient_sq")
    }
    names = list(choices)
    best = {key: "{}, eta {:g}".format(*names[int(np.argmin(mean[key]))]) for key in mean}
    rho = mean_of(found)
    held = rho.within(0.8, inf)
    return Verdict(
        held,
        f"Spearman {rho} over {len(choices)} choices; in the mean predicted best {best['bound']}, "
        f"measured best {best['mean_gradient_sq']}",
        "The bounds are of the worst case: they fear drift at large steps more than these users "
        "cause."
        if held is False
        else "",
    )
