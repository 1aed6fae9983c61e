"""Study ``local-steps``: E local steps of FedDPO, and how they interact with the step size.

The source's bound (its Theorem 5.1) has a term that falls with eta E, the distance to go, and terms
that grow with it, client drift and noise:

    (L_0 - L*) / (eta E R)    against    L^2 eta^2 E kappa^2 + L^2 eta^2 E^2 zeta^2 / S.

Which one dominates decides whether local steps help. It is measured here as the elasticity of the
final gap in E: negative where the first term dominates, positive where the others do.
"""

from collections.abc import Sequence
from functools import partial

from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import Claim, Verdict, compare, fit, increasing, mean_text
from decdpo.studies.study import Options, Study, gap_panel, training_cells
from decdpo.studies.table import Table

PAPER = "Distributed DPO, Fig. 2 and 7"
INTERACTION = "Distributed DPO, Fig. 11 and 12"
STEPS = (1, 3, 6)
RATES = (0.01, 0.1, 1.0)
SOURCE_GAPS = {1: 1.0, 3: 0.4616, 6: 0.1554}
"""The source's final gaps on HH-RLHF after 80 rounds (its Fig. 7b).

In its authors' program a gap is the mean over the last five rounds of the squared norms of batch
gradients that were clipped to norm 1.
"""


class LocalSteps(Study):
    """E in {1, 3, 6} at three step sizes."""

    name = "local-steps"
    title = "Local steps of FedDPO, and the step size"
    source = f"{PAPER}, 11 and 12"
    setting = "FedDPO, all agents take part, equal weights"
    summary_columns = (
        ("lr", "E"),
        ("gap", "relative_gap", "loss", "heldout/average/accuracy"),
    )
    columns = {
        **Study.columns,
        "relative_gap": "gap over that of E = 1 with the same lr, seed and round",
    }

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed, step size and E."""
        variants = [
            (
                {"lr": lr, "E": steps},
                {"optim.lr": lr, "algorithm.kind": "fedavg", "algorithm.local_steps": steps},
            )
            for lr in RATES
            for steps in STEPS
        ]
        return training_cells(options, variants)

    def derive(self, table: Table) -> None:
        """Add the gap, and the gap relative to E = 1."""
        super().derive(table)
        alone = {(r["lr"], r["seed"], r["round"]): r["gap"] for r in table.rows if r["E"] == 1}
        for row in table.rows:
            base = alone.get((row["lr"], row["seed"], row["round"]))
            if base:
                row["relative_gap"] = row["gap"] / base

    def claims(self) -> Sequence[Claim]:
        """Return the order of the gaps at both of the source's step sizes, and our readings."""
        slow = "At this step size drift and noise, which grow with E, outweigh the faster start."
        return (
            Claim(
                PAPER,
                "more local steps end with a smaller gap (eta 0.01): E=6 < E=3 < E=1",
                lambda t: increasing(t, "gap", hue(0.01)[::-1], slow),
            ),
            Claim(
                INTERACTION,
                "the same at eta 0.1",
                lambda t: increasing(t, "gap", hue(0.1)[::-1], slow),
            ),
            *(
                Claim(
                    PAPER,
                    f"final gaps relative to E = 1 of 0.4616 (E = 3) and 0.1554 (E = 6), eta {lr}",
                    partial(beside_source, lr=lr),
                )
                for lr in RATES
            ),
            *(
                Claim(
                    INTERACTION,
                    f"at eta {lr} the term 1/(eta E R) dominates drift and noise",
                    partial(dominant, lr=lr),
                )
                for lr in RATES
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return a panel of curves for each step size, and the final gaps."""
        panels = [gap_panel(table, hue(lr), f"eta = {lr:g}") for lr in RATES]
        final = table.final()
        lines = [
            Line.of(f"eta = {lr:g}", final.where(lr=lr).curve("E", "relative_gap"))
            for lr in RATES
            if final.where(lr=lr).curve("E", "relative_gap")
        ]
        theirs = [(float(steps), [gap]) for steps, gap in SOURCE_GAPS.items()]
        lines.append(Line.of("source, HH-RLHF", theirs, "dashed"))
        last = Panel(
            "final gap", "local steps E", "gap / gap of E = 1", tuple(lines), log_y=True
        )
        return (Figure(self.name, (*panels, last), columns=2),)


def hue(lr: float) -> list[tuple[str, dict[str, float]]]:
    """Return the three E at one step size."""
    return [(f"E={steps}", {"lr": lr, "E": steps}) for steps in STEPS]


def beside_source(table: Table, lr: float) -> Verdict:
    """Put our final gaps beside the source's; held if they lie within a factor 2 of them."""
    final = table.final().where(lr=lr)
    alone = final.where(E=1).by_seed("gap")
    numbers, close = [f"E=1 gap over the start {mean_text(alone)}"], True
    for steps in STEPS[1:]:
        ratio = compare(final.where(E=steps).by_seed("gap"), alone)
        close &= 0.5 <= ratio.ratio / SOURCE_GAPS[steps] <= 2
        numbers.append(
            f"E={steps} {ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"
            f" (source {SOURCE_GAPS[steps]})"
        )
    return Verdict(
        close,
        ", ".join(numbers),
        "The source's numbers are read as relative to E = 1: 0.4616 = exp(-2c) and 0.1554 ~ "
        "exp(-5c) with one c = 0.386, a linear rate proportional to E."
        + ("" if close else " Its model, users and rate c are not given, and c depends on them."),
    )


def dominant(table: Table, lr: float) -> Verdict:
    """Judge by the sign of d ln gap / d ln E, fitted over E and seeds."""
    rows = table.final().where(lr=lr).rows
    slope = fit([row["E"] for row in rows], [row["gap"] for row in rows])
    held = True if slope.high < 0 else False if slope.low > 0 else None
    return Verdict(
        held,
        f"the final gap grows as E to the {slope}",
        {True: "", False: "Drift and noise dominate.", None: "Neither clearly dominates."}[held],
    )
