"""Study ``topology``: DecDPO on graphs of different spectral gap.

The authors' public program has path, ring, star and complete graph of a few users, Metropolis
weights and mixing after the local steps (``overlap`` false), and draws the consensus distance
against the spectral gap. The exponential graph, the torus, 32 agents and mixing during the step are
ours.
"""

from collections.abc import Sequence

import numpy as np

from decdpo.report.study_figures import Figure, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import OURS, Claim, Verdict, fit, increasing, seed_means
from decdpo.studies.study import (
    Options,
    Study,
    curves,
    distance_panel,
    gap_panel,
    pairs_of,
    training_cells,
    usual_lr,
)
from decdpo.studies.table import Missing, Table

PAPER = "Distributed DPO, Fig. 4 and 9"
GRAPHS = ("complete", "exponential", "torus", "ring", "star", "path")
SOURCE_GRAPHS = ("path", "ring", "star", "complete")
HUE = [(graph, {"graph": graph}) for graph in GRAPHS]


class Topology(Study):
    """Six graphs, one step size."""

    name = "topology"
    title = "DecDPO and its communication graph"
    source = f"{PAPER}, with two more graphs"
    agents = 32
    setting = (
        "DecDPO, E = 1, combine while adapting, optim.lr 0.1 (1 on texts), automatic weights; 32 "
        "agents because with 16 the exponential graph and the torus have the same spectral gap"
    )
    summary_columns = (
        ("graph",),
        ("rho", "consensus_distance", "gap", "loss", "heldout/accuracy"),
    )

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed and graph."""
        pairs = pairs_of(options, self.agents)
        lr = usual_lr(pairs)
        variants = [({"graph": g}, {"topology.graph": g, "optim.lr": lr}) for g in GRAPHS]
        return training_cells(options, variants, pairs=pairs)

    def claims(self) -> Sequence[Claim]:
        """Return what the figure shows of connectivity, and what we expect of more graphs."""
        return (
            Claim(
                f"{PAPER}, as the authors' public program draws them",
                "on the source's graphs the consensus distance falls as the spectral gap grows",
                by_spectral_gap,
            ),
            Claim(
                OURS,
                "consensus distance at equal rounds: complete < exponential < torus < ring",
                lambda t: increasing(t, "consensus_distance", HUE[:4]),
            ),
            Claim(
                OURS,
                "gradient norm at equal rounds: complete < exponential < torus < ring",
                lambda t: increasing(
                    t,
                    "gap",
                    HUE[:4],
                    "The average model follows the average gradient on every graph; the graph "
                    "enters only through where the gradients are taken, second order in eta, with "
                    "a sign of its own: agents that are far apart sit nearer to their own optima, "
                    "where their gradients are smaller.",
                ),
            ),
            Claim(
                "theory of decentralized SGD",
                "the consensus distance grows with 1 / (1 - rho) from graph to graph, with an "
                "exponent from 1 (noise) to 2 (heterogeneity)",
                exponent,
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return gradient norm, consensus distance and the order by spectral gap."""
        distance = distance_panel(table, HUE)
        loss = Panel("training loss", "round", "loss", tuple(curves(table, HUE, "loss")))
        return (Figure(self.name, (gap_panel(table, HUE), distance, loss)),)


def by_spectral_gap(table: Table) -> Verdict:
    """Judge the final consensus distance along the source's graphs, by falling spectral gap."""
    final = table.final()
    rho = {g: np.mean(list(final.where(graph=g).by_seed("rho").values())) for g in SOURCE_GRAPHS}
    steps = [(graph, {"graph": graph}) for graph in sorted(rho, key=lambda g: rho[g])]
    return increasing(
        table,
        "consensus_distance",
        steps,
        "The gap is that of the slowest mode alone. On a star of n agents n - 2 modes are as slow "
        "as the slowest; on a ring two are, on a path one, and most of what gradients add lies in "
        "faster modes.",
    )


def exponent(table: Table) -> Verdict:
    """Fit the final consensus distance against 1 / (1 - rho), a point for each graph."""
    rows = [
        {**row, "inverse_gap": 1 / (1 - row["rho"])}
        for row in table.final().rows
        if row["consensus_distance"] > 1e-20 and row["rho"] < 1
    ]
    if not rows:
        raise Missing("no finished cell has a consensus distance")
    points = seed_means(rows, ("graph",), ("inverse_gap", "consensus_distance"))
    slope = fit([r["inverse_gap"] for r in points], [r["consensus_distance"] for r in points])
    rounds = max(row["round"] for row in rows)
    return Verdict(
        slope.within(1, 2),
        f"exponent {slope}, a graph's seeds being one point",
        f"The bound is for the stationary state: after {rounds} rounds the graphs with the "
        "smallest gap have not reached it, which flattens the line."
        if slope.value < 1
        else "",
    )
