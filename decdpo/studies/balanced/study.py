"""Study ``balanced-toy``: Table 1, Figure 1 and Figure 2 of Balanced-DPO, with a sweep.

The source leaves the step size, the number of steps and the meaning of "reward" open. Every setting
of the sweep gives a table like Table 1 for every meaning; a claim is judged by how many of them
bear it out, and held only if all do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from decdpo.report.study_figures import Figure, Heat, Line, Panel
from decdpo.studies.balanced.toy import (
    MASKS,
    REWARDS,
    TABLE_1,
    Toy,
    balanced_toy,
    claims,
    toy_losses,
)
from decdpo.studies.balanced.weights import figure_1, figure_claims
from decdpo.studies.cells import Cell, Direct
from decdpo.studies.claims import Claim, Verdict
from decdpo.studies.study import Options, Study
from decdpo.studies.table import Missing, Row, Table

PAPER = "Balanced-DPO, Table 1"
FIGURE = "Balanced-DPO, Section 4.2 and Fig. 1"
RATES = (0.3, 1.0, 3.0, 10.0)
STEPS = (30, 100, 300)
SHOWN = (1.0, 100)
"""Step size and number of steps of the heat maps."""

FIGURE_2_MASK = 0.2
"""Of the source's Figure 2, a picture of DPO."""

MEANINGS = {
    "symmetric_best": "symmetric nbDPO has the highest reward at every mask",
    "most_beat_dpo": "at least three of the five variants beat DPO at every mask",
    "v2_worse": "nbDPO v2 falls short of nbDPO, with either clip, at every mask",
    "v2_asymmetric_loses": "asymmetric nbDPO v2 falls short of DPO without a mask",
    "mask_does_not_hurt": "no method does worse at mask 0.4 than without one",
    "order": "any two methods that differ in the table are in its order, at every mask",
}
SHAPES = {
    "dpo_peaks_outside": "with uniform data DPO's largest update lies beyond the target mean",
    "balanced_peaks_closer": "the balanced update's peak lies nearer to the target mean",
    "less_out_of_distribution": "balanced updates fall less on responses far from both means",
    "alike_without_shift": "with data drawn from the model both peak alike, within sigma",
}


@dataclass(frozen=True)
class ToyCell(Direct):
    """All methods of Table 1 from one reference, at one step size; see ``toy``."""

    mask: float
    seed: int
    lr: float
    steps: tuple[int, ...]
    optimizer: str
    hidden: int

    def measure(self) -> list[Row]:
        """Return a record for each number of steps and method, with every meaning of reward."""
        toy = Toy(self.mask, seed=self.seed, hidden=self.hidden)
        results = balanced_toy(toy, lr=self.lr, steps=self.steps, optimizer=self.optimizer)
        return [
            {"steps": r.steps, "loss": r.losses.get(method), "method": method, **rewards}
            for r in results
            for method, rewards in r.rewards.items()
        ]


class BalancedToy(Study):
    """The sweep over step size, number of steps, optimizer and meaning of reward."""

    name = "balanced-toy"
    title = "The toy experiment of Balanced-DPO"
    source = f"{PAPER}, Fig. 1 and 2"
    setting = (
        f"SGD with lr in {RATES}, Adam with a tenth of the middle two, steps in {STEPS}; exact "
        "expectation over all unmasked pairs; 300 steps of DPO make the reference"
    )
    summary_columns = (("optimizer", "lr", "steps", "mask", "method"), REWARDS)
    columns = {
        "cell": "digest that names the cell's folder",
        "mask": "share of (prompt, response) pairs that never occur",
        "optimizer, lr, steps": "of the training after the reference",
        "method": "loss; reference is where all begin",
        **{name: "a meaning of reward; see decdpo/studies/balanced/toy.py" for name in REWARDS},
    }

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed, mask, optimizer and step size."""
        if options.data is not None or options.overrides or options.agents is not None:
            from decdpo.errors import ConfigError

            raise ConfigError(
                "balanced-toy trains no agents: --data, --agents and --set would be ignored",
                "leave them out",
            )
        settings = [("sgd", lr) for lr in RATES] + [("adam", lr / 10) for lr in RATES[1:3]]
        steps: tuple[int, ...] = STEPS
        if options.quick:
            settings, steps = settings[1:2], STEPS[:2]
        cells = []
        for seed in options.seed_range():
            for mask in MASKS:
                for optimizer, lr in settings:
                    labels = {"mask": mask, "optimizer": optimizer, "lr": lr, "seed": seed}
                    work = ToyCell(mask, seed, lr, steps, optimizer, 0)
                    cells.append(Cell(labels, work))
        return cells

    def describe_data(self, options: Options) -> str:
        """Return one line on the toy."""
        return "20 prompts, 20 responses, u(y|x) ~ exp(-0.6 (y - x)^2), every seed another mask"

    def summary_rows(self, table: Table) -> Table:
        """Return the setting that the figures show; the others are in final.csv."""
        lr, steps = SHOWN
        return table.where(optimizer="sgd", lr=lr, steps=steps)

    def claims(self) -> Sequence[Claim]:
        """Return the claims on Table 1 and on Figure 1."""
        table = [
            Claim(PAPER, text, partial(share_of_settings, name=name))
            for name, text in MEANINGS.items()
        ]
        shapes = [Claim(FIGURE, text, partial(shape, name=name)) for name, text in SHAPES.items()]
        return (*table, *shapes)

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return Table 1 as curves over the mask, Figure 1, and Figure 2 among others."""
        lr, steps = SHOWN
        shown = table.where(optimizer="sgd", lr=lr, steps=steps)
        panels = [
            Panel(
                reward.replace("_", " "),
                "mask",
                "reward",
                tuple(
                    Line.of(method, points)
                    for method in ("reference", *TABLE_1)
                    if (points := shown.where(method=method).curve("mask", reward))
                ),
            )
            for reward in REWARDS
        ]
        return (
            Figure(self.name, tuple(panels)),
            Figure("balanced-weights", tuple(weights_panels()), columns=2),
            Figure("balanced-policies", tuple(policy_heats(lr, steps)), columns=3),
        )


def weights_panels() -> list[Panel]:
    """Return the six panels of Figure 1: w_i and w_i pi_i."""
    panels = []
    for w in figure_1():
        x = tuple(float(i) for i in range(len(w.p)))
        curves = []
        for label, values in (("w, DPO", w.dpo), ("w p, balanced", w.balanced)):
            ys = tuple(values.tolist())
            curves.append(Line(label, x, ys, ys, ys))
        for label, values in (("p, model", w.p / w.p.max()), ("q, target", w.q / w.q.max())):
            ys = tuple(values.tolist())
            curves.append(Line(label, x, ys, ys, ys, "dashed"))
        title = f"means {w.mu_p:g}, {w.mu_q:g}, {w.sampling} data"
        panels.append(Panel(title, "response", "scaled to 1", tuple(curves)))
    return panels


def policy_heats(lr: float, steps: int) -> list[Heat]:
    """Return pi(y|x) of DPO at mask 0.2, which is Figure 2, then of all, without a mask.

    All are the target, the reference and every method.
    """
    (masked,) = balanced_toy(
        Toy(FIGURE_2_MASK), lr=lr, steps=steps, losses={"dpo": toy_losses()["dpo"]}
    )
    toy = Toy(0.0)
    (result,) = balanced_toy(toy, lr=lr, steps=steps)
    utility = np.exp(toy.log_utility)
    found = {
        f"dpo, mask {FIGURE_2_MASK:g}": masked.policies["dpo"],
        "target": utility / utility.sum(axis=1, keepdims=True),
        **result.policies,
    }
    return [
        Heat(name, "response y", "prompt x", tuple(map(tuple, values.tolist())))
        for name, values in found.items()
    ]


def settings_of(table: Table) -> dict[tuple[str, float, int, str], dict[str, dict[float, float]]]:
    """Return (optimizer, lr, steps, meaning) -> method -> mask -> reward, the mean over seeds."""
    found: dict[tuple[str, float, int, str], dict[str, dict[float, list[float]]]] = {}
    for row in table.rows:
        for meaning in REWARDS:
            key = (row["optimizer"], row["lr"], row["steps"], meaning)
            by = found.setdefault(key, {}).setdefault(row["method"], {})
            by.setdefault(row["mask"], []).append(row[meaning])
    return {
        key: {m: {k: float(np.mean(v)) for k, v in by.items()} for m, by in methods.items()}
        for key, methods in found.items()
        if all(len(methods.get(m, {})) == len(MASKS) for m in TABLE_1)
    }


def share_of_settings(table: Table, name: str) -> Verdict:
    """Count the settings of the sweep, for each meaning of reward, that bear a claim out."""
    found = {key: claims(rewards)[name] for key, rewards in settings_of(table).items()}
    if not found:
        raise Missing("no setting has all methods and masks")
    parts = []
    for meaning in REWARDS:
        votes = [held for key, held in found.items() if key[3] == meaning]
        parts.append(f"{meaning} {sum(votes)}/{len(votes)}")
    yes = sum(found.values())
    where = ", ".join(
        f"{o} lr {lr:g} {s} steps ({m})" for (o, lr, s, m), held in found.items() if held
    )
    why = ""
    if yes < len(found):
        why = (
            f"It depends on what the source leaves open; it holds at: {where}."
            if 0 < yes <= 6
            else "It depends on what the source leaves open: step size, steps, meaning of reward."
            if yes
            else "No setting of the sweep reproduces it."
        )
    numbers = f"{yes} of {len(found)} settings: " + ", ".join(parts)
    return Verdict(yes == len(found), numbers, why)


def shape(table: Table, name: str) -> Verdict:
    """Judge a claim on Figure 1, which needs no cell."""
    found = figure_claims(figure_1())[name]
    numbers = ", ".join(
        f"means {p:g}/{q:g} {'yes' if held else 'no'}" for (p, q), held in found.items()
    )
    return Verdict(all(found.values()), numbers)
