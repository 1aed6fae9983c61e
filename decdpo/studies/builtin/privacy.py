"""Study ``privacy``: what differential privacy of an agent's pairs costs in accuracy.

Every agent runs DP-SGD with one of several noise multipliers, alone and with neighbours. An agent's
epsilon is the same alone and together: what it sends reveals no more for being mixed. But the noise
of n agents averages out in the mean, and their pairs add up, so that neighbours should make the
same epsilon cost less.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import (
    OURS,
    Claim,
    Named,
    Verdict,
    each_of,
    errors,
    in_order,
    no_worse,
)
from decdpo.studies.study import COLUMNS, Options, Study, pairs_of, training_cells, usual_lr
from decdpo.studies.table import Missing, Table

METHODS: dict[str, dict[str, Any]] = {
    "alone": {"algorithm.kind": "local"},
    "DecDPO": {"algorithm.kind": "dsgd", "topology.graph": "exponential_undirected"},
    "FedDPO": {"algorithm.kind": "fedavg"},
}
NOISES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Noise multipliers; 0 is without clipping and noise."""
CLIP_TEXTS, CLIP_COLUMNS = 0.2, 0.5
"""C of texts (beta 0.1) and of columns (beta 1): about the length of the gradient of a pair."""
ERROR = "held-out error of own models"
EPSILON = "epsilon of one training pair (delta 1e-5)"


class PrivacyStudy(Study):
    """Three methods, four noise multipliers and none."""

    name = "privacy"
    title = "Accuracy against epsilon"
    source = "DP-SGD (Abadi et al.); the numbers are ours"
    columns = {
        **COLUMNS,
        "noise": "noise multiplier; 0: neither clipped nor noised",
        "privacy/epsilon": "spent by the agent with most, at delta 1e-5, of one training pair",
    }
    setting = (
        f"80 rounds of one local step, C {CLIP_COLUMNS} ({CLIP_TEXTS} on texts), delta 1e-5, "
        "optim.lr 0.1 (1 on texts); Poisson batches of 16 pairs in the mean where noise is above 0"
    )
    summary_columns = (
        ("method", "noise"),
        ("privacy/epsilon", "heldout/accuracy", "heldout/average/accuracy", "heldout/loss"),
    )

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed, method and noise."""
        pairs = pairs_of(options, self.agents)
        base = {"optim.lr": usual_lr(pairs), "log.gradient_pairs": 16, "log.every": 20}
        clip = CLIP_TEXTS if pairs.text else CLIP_COLUMNS
        variants = []
        for method, settings in METHODS.items():
            for noise in NOISES:
                private = {"privacy.kind": "dp_sgd", "privacy.clip": clip, "privacy.noise": noise}
                labels = {"method": method, "noise": noise}
                variants.append((labels, {**base, **settings, **(private if noise else {})}))
        return training_cells(options, variants, pairs=pairs)

    def claims(self) -> Sequence[Claim]:
        """Return what the source says of noise, and what we ask of neighbours."""
        found = [
            Claim(
                "DP-SGD",
                f"privacy costs accuracy: with the most noise {method} predicts worse than without",
                partial(costs, method=method),
            )
            for method in METHODS
        ]
        found += [
            Claim(
                OURS,
                f"at every epsilon {method} predicts better than agents alone",
                partial(together, method=method),
            )
            for method in ("DecDPO", "FedDPO")
        ]
        found.append(
            Claim(
                OURS,
                "DecDPO predicts no worse than FedDPO at every epsilon, without a server",
                without_server,
            )
        )
        return found

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return accuracy over epsilon, of own models and of the average model."""
        final = Table(row for row in table.final().rows if row.get("privacy/epsilon"))
        panels = []
        for title, key in (("own models", ""), ("average model", "average/")):
            lines = []
            for method in METHODS:
                points = []
                for noise in NOISES:
                    rows = final.where(method=method, noise=noise).rows
                    if rows:
                        spent = sum(row["privacy/epsilon"] for row in rows) / len(rows)
                        points.append((spent, [row[f"heldout/{key}accuracy"] for row in rows]))
                if points:
                    lines.append(Line.of(method, sorted(points)))
            panels.append(Panel(title, EPSILON, "held-out accuracy", tuple(lines), log_x=True))
        return (Figure(self.name, tuple(panels), same_y=True),)


def named(table: Table, method: str, noise: float) -> Named:
    """Return the own models' held-out error by seed, with the method's name."""
    name = f"{method}, noise {noise:g}" if noise else f"{method}, no noise"
    return name, errors(table, "heldout/accuracy", method=method, noise=noise)


def costs(table: Table, method: str) -> Verdict:
    """Compare a method without noise with itself at the most noise."""
    ends = [named(table, method, noise) for noise in (0.0, max(NOISES))]
    return in_order(ERROR, ends, "The noise averages out.")


def together(table: Table, method: str) -> Verdict:
    """Compare a method with agents alone at every noise."""
    why = "Users differ, or the noise drowns what others know as well."
    found = [
        in_order(ERROR, [named(table, method, noise), named(table, "alone", noise)], why)
        for noise in _noises(table)
    ]
    return each_of(ERROR, found, why)


def without_server(table: Table) -> Verdict:
    """Compare DecDPO with FedDPO at every noise."""
    why = "The noise of an agent's own last steps is in its own model, and not yet averaged."
    found = [
        no_worse(ERROR, named(table, "DecDPO", noise), named(table, "FedDPO", noise))
        for noise in _noises(table)
    ]
    return each_of(ERROR, found, why)


def _noises(table: Table) -> list[float]:
    found = sorted(noise for noise in table.values("noise") if noise)
    if not found:
        raise Missing("no cell with noise is finished")
    return found
