"""Study ``heterogeneity``: whom does it serve to train together, as users grow unlike?"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import (
    OURS,
    Claim,
    Verdict,
    all_of,
    compare,
    errors,
    in_order,
    interval,
    mean_of,
)
from decdpo.studies.study import (
    Options,
    Study,
    curves,
    pairs_of,
    training_cells,
    usual_lr,
)
from decdpo.studies.table import Missing, Table

KAPPAS = (0.0, 0.5, 1.0, 2.0, 4.0)
METHODS: dict[str, dict[str, Any]] = {
    "local": {"algorithm.kind": "local"},
    "FedDPO": {"algorithm.kind": "fedavg", "algorithm.local_steps": 3},
    "DecDPO": {"topology.graph": "ring"},
    "gradient tracking": {"algorithm.kind": "gradient_tracking", "topology.graph": "ring"},
    "centralized": {"algorithm.kind": "centralized"},
}
LIMIT = 0.02
"""Difference of accuracies that is called none."""


class Heterogeneity(Study):
    """Five methods on users at a set distance, or on the user's own pairs."""

    name = "heterogeneity"
    title = "Methods and unlike users"
    source = "the subject of Distributed DPO and FedPDPO; the numbers are ours"
    partition = "dirichlet:0.3"
    setting = "optim.lr 0.1 (1 on texts), ring, FedDPO with E = 3; on synthetic users also kappa"
    summary_columns = (
        ("kappa", "method"),
        ("heldout/accuracy", "heldout/average/accuracy", "gap_tail", "consensus_distance", "loss"),
    )
    columns = {**Study.columns, "kappa": "distance of every user's reward from the common one"}

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each kappa, seed and method."""
        kappas: Sequence[float | None] = KAPPAS
        if options.data is not None:
            kappas = (None,)
        cells = []
        for kappa in kappas:
            pairs = pairs_of(options) if kappa is None else pairs_of(options, kappa=kappa)
            variants = [
                ({"method": name}, {"optim.lr": usual_lr(pairs), **settings})
                for name, settings in METHODS.items()
            ]
            labels = {} if kappa is None else {"kappa": kappa}
            cells += training_cells(options, variants, pairs=pairs, common=labels)
        return cells

    def describe_data(self, options: Options) -> str:
        """Return one line on the pairs."""
        if options.data is not None:
            return options.data.describe()
        return pairs_of(options).describe().replace("kappa 1.0", f"kappa {KAPPAS}")

    def claims(self) -> Sequence[Claim]:
        """Return what is expected of like and of unlike users."""
        return (
            Claim(
                OURS,
                "among the given users, or those most alike, DecDPO's average model errs less than "
                "agents alone",
                partial(_together, last=False),
            ),
            Claim(
                OURS,
                "among the users least alike, agents alone err less than DecDPO's average model",
                partial(_together, last=True),
            ),
            Claim(
                OURS,
                "DecDPO's average model is as accurate as centralized DPO, within 2 points at "
                "every kappa, or among the given users",
                partial(_as_good, method="DecDPO"),
            ),
            Claim(
                OURS,
                "FedDPO is as accurate as centralized DPO, within 2 points at every kappa, or "
                "among the given users",
                partial(_as_good, method="FedDPO"),
            ),
            Claim(
                "theory of gradient tracking",
                "with a constant step gradient tracking keeps the agents closer than DecDPO",
                _tracking,
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return accuracies against kappa, or over the rounds where there is none."""
        keys = (("heldout/accuracy", "own models"), ("heldout/average/accuracy", "average model"))
        hue = [(name, {"method": name}) for name in METHODS]
        panels = []
        for key, title in keys:
            if table.values("kappa"):
                final = table.final()
                lines = [
                    Line.of(name, final.where(labels).curve("kappa", key)) for name, labels in hue
                ]
                panels.append(Panel(title, "kappa", "held-out accuracy", tuple(lines)))
            else:
                lines = list(curves(table, hue, key))
                panels.append(Panel(title, "round", "held-out accuracy", tuple(lines)))
        return (Figure(self.name, tuple(panels)),)


def _levels(table: Table) -> list[tuple[str, Table]]:
    """Return the final rows for each kappa, with its name; of real data all of them."""
    final = table.final()
    if not final.rows:
        raise Missing("no cell is finished")
    kappas = sorted(final.values("kappa"))
    return [(f"kappa {k:g}", final.where(kappa=k)) for k in kappas] or [("these users", final)]


def _together(table: Table, last: bool) -> Verdict:
    """Compare held-out errors of the average model and of agents alone, at an end of kappa."""
    levels = _levels(table)
    if last and len(levels) == 1:
        raise Missing("how unlike these users are is not varied")
    name, level = levels[-1 if last else 0]

    sides = [
        ("DecDPO, average model", errors(level, "heldout/average/accuracy", method="DecDPO")),
        ("agents alone", errors(level, "heldout/accuracy", method="local")),
    ]
    return in_order(
        f"held-out error, {name}",
        sides[::-1] if last else sides,
        "What the others' pairs teach and what a model for all loses on each user is weighed "
        "here by the number of rounds: an agent alone has not overfitted its pairs yet."
        if not last
        else "These users are alike enough for the others' pairs to help.",
    )


def _as_good(table: Table, method: str) -> Verdict:
    """Compare accuracies of the average model and of centralized DPO at every kappa, by seed."""
    outcomes, numbers = [], []
    for name, level in _levels(table):
        theirs = level.where(method="centralized").by_seed("heldout/average/accuracy")
        ours = level.where(method=method).by_seed("heldout/average/accuracy")
        shared = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
        if not shared:
            raise Missing(f"{method} and centralized share no seed at {name}")
        gap = mean_of(shared)
        outcomes.append(gap.within(-LIMIT, LIMIT))
        numbers.append(f"{name} {gap.value:+.4f} {interval(gap.low, gap.high, '+.4f')}")
    held = all_of(outcomes)
    return Verdict(
        held,
        f"mean accuracy of {method} minus centralized: " + "; ".join(numbers),
        "It takes more steps in a round, and is further along in the end."
        if held is False and method == "FedDPO"
        else "",
    )


def _tracking(table: Table) -> Verdict:
    """Compare the consensus distances where users are least alike."""
    name, level = _levels(table)[-1]
    key = "consensus_distance"
    sides = {m: level.where(method=m).by_seed(key) for m in ("gradient tracking", "DecDPO")}
    found = compare(sides["gradient tracking"], sides["DecDPO"])
    return Verdict(
        found.less,
        f"consensus distance, {name}: gradient tracking / DecDPO = {found}",
        ""
        if found.less
        else "Tracking removes the part that comes of unlike users and adds noise of its own: a "
        "tracked gradient carries the batches of several rounds.",
    )
