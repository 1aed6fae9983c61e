"""Study ``advisor``: is what the theory's advisor chooses better than the default setting?

For every seed the constants are measured on its pairs, and the advisor is asked for a budget: that
of the default setting, counted in three ways. Every candidate it ranks is then run, each with the
step size that makes its bound smallest, for as many rounds as the budget pays for. A bound is
of the mean of ||grad L(x_bar)||^2 over the rounds, ``mean_gradient_sq``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from decdpo.errors import ConfigError
from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.builtin.advice import (
    BUDGETS,
    CANDIDATE,
    CHOICE,
    DEFAULT,
    LONGER,
    STEPS,
    advice_claims,
    ranked,
)
from decdpo.studies.builtin.rates import MeasuredConstants, problem_of
from decdpo.studies.cells import Cell, Memory, Training
from decdpo.studies.claims import Claim
from decdpo.studies.engine import folder_of
from decdpo.studies.study import Options, Study, pairs_of, training, usual_lr, usual_settings
from decdpo.studies.table import Row, Table
from decdpo.theory.advisor import Budget, Choice, Cost, advise, per_round, suitable
from decdpo.theory.bounds import Problem, decentralized
from decdpo.theory.series import mean_over_rounds
from decdpo.topology.schedule import make_schedule

GRAPHS = ("ring", "exponential", "one_peer_exponential", "complete")
LOCAL_STEPS = (1, 4, 16)


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
        return advice_claims()

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return the mean squared gradient of every candidate against its bound, by budget."""
        final = table.final()
        methods = ("FedDPO", *(f"DecDPO {graph}" for graph in GRAPHS))
        panels = []
        for budget, what in BUDGETS.items():
            rows = ranked(final, budget)
            groups = [(m, [r for r in rows if r["setting"].startswith(f"{m}, ")]) for m in methods]
            groups.append((DEFAULT, final.where(setting=DEFAULT).rows))
            advised = [{**r, "setting": CHOICE} for r in rows if r[f"role_{budget}"] == CHOICE]
            groups.append((CHOICE, advised))
            lines = [
                Line.of(name, _points(chosen), "points") for name, chosen in groups if chosen
            ]
            ends = [x for line in lines for x in line.x]
            if ends:
                edge = tuple(sorted({min(ends), max(ends)}))
                lines.append(Line("bound = measured", edge, edge, edge, edge, "dashed"))
            short = what.split(" (")[0]
            label = r"measured mean of $\|\nabla L(\bar{x})\|^2$"
            panels.append(Panel(short, "bound on the mean", label, tuple(lines), True, True))
        return (Figure(self.name, tuple(panels)),)


def _variants(problem: Problem, default: Training) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (labels, settings) of the default, the candidates and the advice at other steps."""
    config, n = default.config, problem.num_agents
    if config.topology is None or config.algorithm.kind != "dsgd":
        raise ConfigError(
            f"the advice is compared with {config.algorithm.kind}",
            "leave algorithm.kind out: the default of this study is dsgd",
        )
    rounds, lr, steps = config.run.rounds, config.optim.lr, config.algorithm.local_steps
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
        found.append((x, [row["mean_gradient_sq"] for row in chosen]))
    return sorted(found)
