"""What is claimed of the theory's advice, and how the table of the study ``advisor`` judges it."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import numpy as np

from decdpo.studies.claims import (
    OURS,
    Claim,
    Verdict,
    all_of,
    compare,
    in_order,
    mean_of,
    mean_text,
    rank_correlation,
)
from decdpo.studies.table import Missing, Row, Table

BUDGETS: dict[str, str] = {
    "rounds": "as many rounds",
    "messages": "as many messages of all agents together",
    "time": "as much time (a message on an agent's link taking as long as a gradient)",
}
DEFAULT, LONGER = "default", "default, gradients of the advised"
CHOICE, CANDIDATE = "advised", "candidate"
STEPS = {"advised, step / 4": 0.25, "advised, step * 4": 4.0}
"""The advised setting at other steps, over the advised one."""


def advice_claims() -> Sequence[Claim]:
    """Return whether the advice pays, whether its order is right, and how cautious it is."""
    found = []
    for budget, what in BUDGETS.items():
        found += [
            Claim(OURS, f"for {what}, the advised setting {better}", partial(check, budget))
            for better, check in BETTER.items()
        ]
    found += [
        Claim(
            OURS,
            "for as many gradients, the advised setting with E = 1 ends with a smaller one",
            partial(_only, ", E=1", ""),
        ),
        Claim(
            OURS,
            "the setting advised for as many rounds ends with a smaller gradient than the "
            "default that goes on for as many gradients",
            _equal_gradients,
        ),
        Claim(
            OURS,
            "on the ring with E = 1, the advised step ends with a smaller gradient than the "
            "default's",
            partial(
                _only,
                "DecDPO ring, E=1",
                "For the graph the bound pays kappa^2 / (1 - rho)^2, the worst case in which "
                "the users' differences lie along its slowest mode, and so allows small steps.",
            ),
        ),
    ]
    for budget, what in BUDGETS.items():
        found += [
            Claim(
                OURS,
                f"for {what}, the candidates rank as predicted (rank correlation above 0.8)",
                partial(_ranks, budget),
            ),
            Claim(
                OURS,
                f"for {what}, what is predicted is above what is measured, by a factor of 10 "
                "at most",
                partial(_conservative, budget),
            ),
            Claim(
                OURS,
                f"for {what}, the advised step beats a quarter and four times of it",
                partial(_step, budget),
            ),
        ]
    return found


def ranked(final: Table, budget: str) -> list[Row]:
    """Return the final rows of the candidates, the choice among them."""
    return [row for row in final.rows if row.get(f"role_{budget}") in (CHOICE, CANDIDATE)]


def _sides(
    table: Table, key: str, budget: str, second: str = DEFAULT
) -> tuple[dict[int, float], dict[int, float]]:
    """Return ``key`` of the choice and of another role, by seed."""
    final, role = table.final(), f"role_{budget}"
    return final.where({role: CHOICE}).by_seed(key), final.where({role: second}).by_seed(key)


def _chosen(table: Table, budget: str) -> str:
    """Return what was chosen, and in how many seeds."""
    rows = table.final().where({f"role_{budget}": CHOICE}).rows
    names = [f"{row['setting']}, {row['rounds']} rounds" for row in rows]
    return "; ".join(f"{name} in {names.count(name)} seeds" for name in dict.fromkeys(names))


def _smaller(key: str, what: str, budget: str, table: Table) -> Verdict:
    """Judge whether ``key`` of the choice is smaller than the default's."""
    advised, default = _sides(table, key, budget)
    if key == "heldout/average/accuracy":
        advised, default = ({s: 1 - v for s, v in side.items()} for side in (advised, default))
    found = in_order(what, [(CHOICE, advised), (DEFAULT, default)])
    return Verdict(found.held, f"{found.numbers}. Advised: {_chosen(table, budget)}", found.why)


BETTER: dict[str, Callable[[str, Table], Verdict]] = {
    "ends with a smaller gradient": partial(_smaller, "gradient_sq", "||grad L(x_bar)||^2"),
    "ends with a smaller training loss": partial(_smaller, "loss_tail", "loss"),
    "errs less on held-out pairs": partial(
        _smaller, "heldout/average/accuracy", "held-out error of the average model"
    ),
}


def _only(setting: str, why: str, table: Table) -> Verdict:
    """Compare the best-ranked candidate whose name ends with ``setting`` and the default."""
    rows = [row for row in ranked(table.final(), "rounds") if row["setting"].endswith(setting)]
    best: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: float(row["predicted"])):
        best.setdefault(row["seed"], row)
    chosen, default = Table(best.values()), table.final().where(setting=DEFAULT)
    found = in_order(
        "||grad L(x_bar)||^2",
        [("advised", chosen.by_seed("gradient_sq")), (DEFAULT, default.by_seed("gradient_sq"))],
        why,
    )
    names = ", ".join(chosen.values("setting"))
    steps = [mean_text(side.by_seed("lr")) for side in (chosen, default)]
    numbers = f"{found.numbers}. Advised: {names}; steps {steps[0]} and {steps[1]}"
    return Verdict(found.held, numbers, found.why)


def _equal_gradients(table: Table) -> Verdict:
    """Compare the choice for a budget of rounds and the default with as many gradients."""
    advised, longer = _sides(table, "gradient_sq", "rounds", LONGER)
    return in_order(
        "||grad L(x_bar)||^2",
        [(CHOICE, advised), (LONGER, longer)],
        "The default then has many times the rounds, and with each an exchange.",
    )


def _ranks(budget: str, table: Table) -> Verdict:
    """Correlate the ranks of predicted and measured gaps over the candidates, seed by seed."""
    rows = ranked(table.final(), budget)
    found: dict[str, dict[int, float]] = {"mean_gradient_sq": {}, "gradient_sq": {}}
    places, regrets, best = {}, {}, []
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        choice = [row for row in own if row[f"role_{budget}"] == CHOICE]
        if len(own) < 3 or not choice:
            continue
        for key, values in found.items():
            values[seed] = rank_correlation(own, "predicted", key)
        ours, measured = choice[0]["gradient_sq"], [row["gradient_sq"] for row in own]
        places[seed] = sum(value < ours for value in measured) + 1
        regrets[seed] = ours / min(measured)
        best.append(own[int(np.argmin(measured))]["setting"])
    if not places:
        raise Missing("fewer than three candidates are finished")
    held = mean_of(found["mean_gradient_sq"]).within(0.8, inf)
    numbers = (
        f"Spearman {mean_text(found['mean_gradient_sq'])} with the mean over the rounds, "
        f"{mean_text(found['gradient_sq'])} with the last value; in the end the advised setting is "
        f"number {mean_text(places)} of {len(rows) // len(places)}, {mean_text(regrets)} times the "
        f"smallest, which is of {', '.join(dict.fromkeys(best))}"
    )
    return Verdict(held, numbers)


def _conservative(budget: str, table: Table) -> Verdict:
    """Say by how much the bounds are above the measured means, and above the last values."""
    rows = ranked(table.final(), budget)
    advised, default = _sides(table, "ratio", budget)
    ratios = [row["ratio"] for row in rows]
    below = sum(ratio < 1 for ratio in ratios)
    last = np.median([row["predicted"] / row["gradient_sq"] for row in rows])
    numbers = (
        f"predicted / measured mean: least {min(ratios):.3g}, median {np.median(ratios):.3g}, most "
        f"{max(ratios):.3g}, below 1 in {below} of {len(ratios)} runs; of the advised setting "
        f"{mean_text(advised)}, of the default {mean_text(default)}; predicted / last value: "
        f"median {last:.3g}"
    )
    return Verdict(below == 0 and max(ratios) <= 10, numbers)


def _step(budget: str, table: Table) -> Verdict:
    """Compare the choice at its own step and at others."""
    outcomes, numbers = [], []
    for role in STEPS:
        found = compare(*_sides(table, "gradient_sq", budget, role))
        outcomes.append(found.less)
        numbers.append(f"{CHOICE} / {role} = {found}")
    held = all_of(outcomes)
    why = "The bound's step is the best for the worst case, not for these users."
    text = "||grad L(x_bar)||^2: " + "; ".join(numbers)
    return Verdict(held, text, why if held is False else "")
