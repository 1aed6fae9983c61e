"""Study ``advisor``: is what the theory's advisor chooses better than the default setting?

For every seed the constants are measured on its pairs, and the advisor is asked for a budget: that
of the default setting, counted in three ways. Every candidate it ranks is then run, each with the
step size that makes its bound smallest, for as many rounds as the budget pays for. A bound speaks
of the mean of ||grad L(x_bar)||^2 over the rounds, ``mean_gradient_sq``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

import numpy as np

from decdpo.build import local_steps
from decdpo.errors import ConfigError
from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell, Memory, Training
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
from decdpo.studies.engine import folder_of
from decdpo.studies.rates import MeasuredConstants, problem_of
from decdpo.studies.study import Options, Study, pairs_of, training, usual_lr, usual_settings
from decdpo.studies.table import Missing, Row, Table
from decdpo.theory.advisor import Budget, Choice, Cost, advise, per_round, suitable
from decdpo.theory.bounds import Problem, decentralized
from decdpo.theory.series import mean_over_rounds
from decdpo.topology.schedule import make_schedule

GRAPHS = ("ring", "exponential", "one_peer_exponential", "complete")
LOCAL_STEPS = (1, 4, 16)
BUDGETS: dict[str, str] = {
    "rounds": "as many rounds",
    "messages": "as many messages of all agents together",
    "time": "as much time (a message on an agent's link taking as long as a gradient)",
}
DEFAULT, LONGER = "default", "default, gradients of the advised"
CHOICE, CANDIDATE = "advised", "candidate"
STEPS = {"advised, step / 4": 0.25, "advised, step * 4": 4.0}
"""The advised setting at other steps, over the advised one."""


class Advisor(Study):
    """The default setting and every candidate of the advisor, on three budgets."""

    name = "advisor"
    title = "What the theory advises, against the default setting"
    source = "the bounds of Distributed DPO put to use; the numbers are ours"
    setting = (
        "default: DecDPO, ring, E = 1, optim.lr 0.1 (1 on texts); candidates: FedDPO with S = n "
        f"and n/4, DecDPO on {', '.join(GRAPHS)}, each with E in {LOCAL_STEPS} and its own step "
        "size; E gradients of an agent in a round"
    )
    summary_columns = (
        ("setting", "rounds"),
        ("lr", "predicted", "mean_gradient_sq", "gradient_sq", "loss_tail",
         "heldout/average/accuracy"),
    )  # fmt: skip
    columns = {
        **Study.columns,
        "role_rounds, role_messages, role_time": "what a run is on the budget that grants it as "
        f"many rounds, messages or as much time as the default: {CHOICE}, the advisor's first "
        f"choice; {CANDIDATE}, another that it ranked; {', '.join(STEPS)}; {DEFAULT}; {LONGER}: "
        "the default, for as many gradients as the setting advised on the budget of rounds takes",
        "predicted": "the bound on mean_gradient_sq",
        "ratio": "predicted / mean_gradient_sq",
        "mean_gradient_sq": "mean of gradient_norm^2 over the models that the rounds began from, "
        "linear between the records; on a cell's last row",
        "gradient_sq": "gradient_norm^2, on a cell's last row; of the constants: at the start",
        "loss_tail": "mean of loss over the last quarter of the rounds, on a cell's last row",
    }

    def cells(self, options: Options) -> list[Cell]:
        """Return the constants of each seed, the default and what the advisor ranks.

        Measures the constants that are not there yet: without them there are no candidates.
        """
        pairs = pairs_of(options)
        base = {**usual_settings(options, pairs), "optim.lr": usual_lr(pairs)}
        if options.agents is not None:
            base["agents.count"] = options.agents
        memory, cells = Memory(), []
        for seed in options.seed_range():
            index = pairs.shards(seed, options.room)
            where = {**base, "data.shards": str(index.folder), "run.seed": seed}
            default = training(where, options.overrides, index.digest, {"seed": seed})
            constants = Cell(
                {"setting": "constants", "seed": seed},
                MeasuredConstants(default.config, index.digest),
            )
            folder = folder_of(options.out, constants)
            if not constants.work.finished(folder):
                folder.mkdir(parents=True, exist_ok=True)
                constants.work.run(folder, memory)
            problem = problem_of(constants.work.records(folder, memory)[0])
            # The same run may be a candidate on several budgets: it is one cell with many roles.
            runs: dict[str, Cell] = {}
            for labels, settings in _variants(problem, default):
                kind = {k: v for k, v in settings.items() if k == "algorithm.kind"}
                wanted = [*options.overrides, *(f"{k}={v}" for k, v in settings.items())]
                work = training({**where, **kind}, wanted, index.digest, labels)
                cell = Cell({**labels, "seed": seed}, work)
                known = runs.get(cell.digest, cell)
                runs[cell.digest] = Cell({**cell.labels, **known.labels}, work)
            cells += [constants, *runs.values()]
        return cells

    def derive(self, table: Table) -> None:
        """Add the mean and the final squared gradient norm, and the tail of the loss."""
        super().derive(table)
        runs: dict[str, list[Row]] = {}
        for row in table.rows:
            if "round" in row:
                runs.setdefault(row["cell"], []).append(row)
        for rows in runs.values():
            last = rows[-1]
            squares = [row["gradient_norm"] ** 2 for row in rows]
            last["mean_gradient_sq"] = mean_over_rounds([row["round"] for row in rows], squares)
            last["gradient_sq"] = squares[-1]
            if last.get("predicted"):
                last["ratio"] = last["predicted"] / last["mean_gradient_sq"]
            tail = [row["loss"] for row in rows if 4 * row["round"] > 3 * last["round"]]
            last["loss_tail"] = float(np.mean(tail))

    def claims(self) -> Sequence[Claim]:
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

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return the final gap of every candidate against the predicted one, for each budget."""
        final = table.final()
        methods = ("FedDPO", *(f"DecDPO {graph}" for graph in GRAPHS))
        panels = []
        for budget, what in BUDGETS.items():
            rows = _ranked(final, budget)
            groups = [(m, [r for r in rows if r["setting"].startswith(f"{m}, ")]) for m in methods]
            groups.append((DEFAULT, final.where(setting=DEFAULT).rows))
            advised = [{**r, "setting": CHOICE} for r in rows if r[f"role_{budget}"] == CHOICE]
            groups.append((CHOICE, advised))
            lines = [
                Line.of(name, _points(chosen), "points", colour)
                for colour, (name, chosen) in enumerate(groups)
                if chosen
            ]
            ends = [x for line in lines for x in line.x]
            if ends:
                edge = tuple(sorted({min(ends), max(ends)}))
                lines.append(Line("as predicted", edge, edge, edge, edge, "dashed", 7))
            short = what.split(" (")[0]
            label = r"measured $\|\nabla L(\bar{x})\|^2$ in the end"
            panels.append(Panel(short, "predicted mean", label, tuple(lines), True, True))
        return (Figure(self.name, tuple(panels)),)


def _variants(problem: Problem, default: Training) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (labels, settings) of the default, the candidates and the advice at other steps."""
    config, n = default.config, problem.num_agents
    if config.topology is None or config.algorithm.kind != "dsgd":
        raise ConfigError(
            f"the advice is compared with {config.algorithm.kind}",
            "leave algorithm.kind out: the default of this study is dsgd",
        )
    rounds, lr, steps = config.run.rounds, config.optim.lr, local_steps(config)
    schedule = make_schedule(config.topology.graph, config.topology.weights, n)
    # A message counts as one byte: no choice depends on its size.
    cost = Cost.of_gossip(schedule, 1, steps)
    clock = Budget(seconds=1.0, seconds_per_byte=1.0, seconds_per_gradient=1.0)
    budgets = {
        "rounds": Budget(rounds=rounds),
        "messages": Budget(bytes=rounds * cost.bytes),
        "time": Budget(None, None, rounds * clock.seconds_of(cost), 1.0, 1.0),
    }
    predicted = decentralized(problem, lr, rounds, steps, per_round(schedule)).total
    own = {
        **{f"role_{budget}": DEFAULT for budget in BUDGETS},
        "setting": DEFAULT,
        "E": steps,
        "rounds": rounds,
        "predicted": predicted,
    }
    found: list[tuple[dict[str, Any], dict[str, Any]]] = [(own, _logged(rounds))]
    graphs = suitable(GRAPHS, n)
    for budget, spent in budgets.items():
        role = f"role_{budget}"
        choices = advise(
            problem, spent, graphs, message_bytes=1, local_steps=LOCAL_STEPS,
            participants=sorted({n, max(n // 4, 1)}, reverse=True),
        )  # fmt: skip
        for rank, choice in enumerate(choices):
            name = f"DecDPO {choice.graph}" if choice.graph else f"FedDPO, S={choice.participants}"
            labels = {
                role: CANDIDATE if rank else CHOICE,
                "setting": f"{name}, E={choice.local_steps}",
                "predicted": choice.bound.total,
            }
            found.append(_taking(choice, labels))
        for name, factor in STEPS.items():
            found.append(_taking(choices[0], {role: name, "setting": name}, factor))
        longer = rounds * choices[0].local_steps // steps
        if budget == "rounds" and longer > rounds:
            labels = {role: LONGER, "setting": LONGER, "E": steps, "rounds": longer}
            found.append((labels, _logged(longer)))
    return found


def _taking(
    choice: Choice, labels: Mapping[str, Any], factor: float = 1.0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return labels and settings of a run that takes the advice, at ``factor`` times its step."""
    settings: dict[str, Any] = dict(text.split("=", 1) for text in choice.overrides())
    settings |= {"optim.lr": f"{factor * choice.bound.step:.6g}", **_logged(choice.rounds)}
    return {**labels, "E": choice.local_steps, "rounds": choice.rounds}, settings


def _logged(rounds: int) -> dict[str, Any]:
    # 80 records: with 20 the mean over the rounds is up to a fifth too large on a steep curve.
    return {"run.rounds": rounds, "log.every": max(rounds // 80, 1)}


def _points(rows: Sequence[Row]) -> list[tuple[float, list[float]]]:
    """Return (mean prediction, measured values) of every setting, over the seeds."""
    found = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        chosen = [row for row in rows if row["setting"] == name]
        x = float(np.exp(np.mean([np.log(row["predicted"]) for row in chosen])))
        found.append((x, [row["gradient_sq"] for row in chosen]))
    return sorted(found)


def _ranked(final: Table, budget: str) -> list[Row]:
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
    rows = [row for row in _ranked(table.final(), "rounds") if row["setting"].endswith(setting)]
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
    rows = _ranked(table.final(), budget)
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
    rows = _ranked(table.final(), budget)
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
