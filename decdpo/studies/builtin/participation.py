"""Study ``participation``: S of n agents take part in a round of FedDPO."""

from collections.abc import Sequence

from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import Claim, Verdict, fit, in_order, slope_by_seed
from decdpo.studies.study import (
    Options,
    Study,
    curves,
    gap_panel,
    num_agents,
    pairs_of,
    training_cells,
    usual_lr,
)
from decdpo.studies.table import Missing, Table

PAPER = "Distributed DPO, Fig. 3 and 8"
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
TOLERANCE = 0.25
"""Of the exponent that is called -1."""


class ParticipationStudy(Study):
    """S from n/8 to n."""

    name = "participation"
    title = "Participation in FedDPO"
    source = PAPER
    setting = "FedDPO, E = 3, equal weights, optim.lr 0.1 (1 on texts)"
    summary_columns = (("S",), ("gap", "gap_tail", "loss", "heldout/average/accuracy"))

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed and S."""
        pairs = pairs_of(options)
        n = num_agents(options, pairs)
        common = {"algorithm.kind": "fedavg", "algorithm.local_steps": 3}
        variants = []
        for chosen in dict.fromkeys(max(round(share * n), 1) for share in SHARES):
            settings = {"algorithm.participants": chosen, "optim.lr": usual_lr(pairs)}
            variants.append(({"S": chosen}, {**common, **settings}))
        return training_cells(options, variants)

    def claims(self) -> Sequence[Claim]:
        """Return what the figure and the bound say of S."""
        return (
            Claim(PAPER, "the more participants, the smaller the gap in the end", more_is_better),
            Claim(
                "Distributed DPO, Theorem 5.1",
                f"below n the final gap falls like 1/S: exponent -1 ± {TOLERANCE}",
                one_over_s,
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return gradient norm and loss over the rounds, and the gap against S."""
        hue = [(f"S={s}", {"S": s}) for s in sorted(table.values("S"))]
        loss = Panel("training loss", "round", "loss", tuple(curves(table, hue, "loss")))
        points = table.final().curve("S", "gap_tail")
        lines = [Line.of("mean of the last quarter", points)] if points else []
        last = Panel("gap against S", "participants S", "gap", tuple(lines), True, True)
        return (Figure(self.name, (gap_panel(table, hue), loss, last)),)


def more_is_better(table: Table) -> Verdict:
    """Compare the mean gap of the last quarter for each S and the next smaller one."""
    final = table.final()
    sizes = sorted(final.values("S"), reverse=True)
    if not sizes:
        raise Missing("no cell is finished")
    found = [(f"S={s}", final.where(S=s).by_seed("gap_tail")) for s in sizes]
    return in_order(
        "gap over the last quarter of the rounds",
        found,
        "Where the distance to go dominates, S does not matter.",
    )


def one_over_s(table: Table) -> Verdict:
    """Fit ln gap against ln S over S < n."""
    final = table.final()
    most = max(final.values("S"), default=0)
    below = sorted(size for size in final.values("S") if size < most)
    slope = slope_by_seed([row for row in final.rows if row["S"] < most], "S", "gap_tail")
    why = ""
    if slope.value < -1:
        drawn = fit(below, [(most - size) / size for size in below]).value
        why = (
            "Drawing S of n without replacement has a variance of (n - S) / (S (n - 1)), which "
            f"falls faster than 1/S: its own exponent over these S is {drawn:.2f}."
        )
    elif slope.value > -1:
        why = "The distance still to go is in the gap too, and does not fall with S at all."
    held = slope.within(-1 - TOLERANCE, -1 + TOLERANCE)
    numbers = f"exponent {slope}, mean and interval of {slope.seeds} seeds' slopes"
    return Verdict(held, numbers, "" if held else why)
