"""Measure the constants of the theory, and what they predict and advise.

Measures smoothness (of the global objective and of the least smooth agent), heterogeneity, gradient
noise and the initial gap on the agents' training pairs, where training starts; shows the predicted
bound of the configuration beside the largest stable step, and says which settings the theory does
not cover; ranks methods, graphs, local steps and step sizes on a budget. Of a run folder also the
measured gradient norms are shown, and the constants at its checkpoint.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decdpo.config import Config, load
from decdpo.config.algorithms import FedAvg
from decdpo.config.places import find_paths
from decdpo.config.schema import Sgd
from decdpo.errors import ConfigError
from decdpo.session.record import read_run

if TYPE_CHECKING:
    from decdpo.session.experiment import Experiment
    from decdpo.session.job import Job

GRAPHS = ("ring", "torus", "exponential", "one_peer_exponential", "complete")


METHODS = ("dsgd", "fedavg")
"""What the advice is about: DecDPO on a graph, and FedDPO with a server."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo theory``."""
    parser.add_argument("source", type=Path, metavar="RUN_OR_CONFIG", help="run folder or TOML")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--pairs", type=int, default=0, metavar="N", help="training pairs per agent; 0 is all (0)"
    )
    parser.add_argument(
        "--iterations", type=int, default=200, help="of the search for the optimum; 0 is none (200)"
    )
    parser.add_argument(
        "--delay", type=int, metavar="Q",
        help="also the bound for messages Q rounds old (staleness.max_age)",
    )  # fmt: skip
    budget = parser.add_argument_group("budget of the advice (default: the rounds of the run)")
    budget.add_argument("--budget-rounds", type=int, metavar="R")
    budget.add_argument("--budget-bytes", type=float, metavar="B", help="of all agents together")
    budget.add_argument("--budget-seconds", type=float, metavar="T")
    budget.add_argument("--seconds-per-byte", type=float, default=0.0, help="of an agent's link")
    budget.add_argument("--seconds-per-gradient", type=float, default=0.0, help="of one batch")
    budget.add_argument(
        "--methods", nargs="+", choices=METHODS, default=None, metavar="METHOD",
        help=f"{', '.join(METHODS)}; with --graphs dsgd alone unless both are named (both)",
    )  # fmt: skip
    budget.add_argument(
        "--graphs", nargs="+", default=None, metavar="GRAPH", help=f"({' '.join(GRAPHS)})"
    )
    budget.add_argument(
        "--local-steps", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="E",
        help="(1 2 4 8 16)",
    )  # fmt: skip
    budget.add_argument("--top", type=int, default=8, help="choices shown (8)")
    parser.add_argument("--world", choices=("auto", "local", "mpi"), default="auto",
                        help="one process (local) or MPI")


def run(args: argparse.Namespace) -> int:
    """Measure, predict, advise, and print."""
    from decdpo.session.job import launch

    return launch(lambda job: _theory(job, args), args.world)


def _theory(job: "Job", args: argparse.Namespace) -> int:
    from decdpo.metrics.evaluation import average_model
    from decdpo.report.theory_page import table
    from decdpo.session.experiment import prepare
    from decdpo.session.measuring.models import saved_models
    from decdpo.theory.constants import measure

    job.boot.require_same("the source", str(args.source))
    job.together(lambda: _check(args))
    # A name that is neither is taken for what it looks like, so that the error tells of such.
    is_run = args.source.is_dir() or not (args.source.exists() or args.source.suffix == ".toml")
    config = job.together(lambda: _config(args, is_run, job.say))
    experiment = prepare(job, config, args.source, training=False)
    world, agents = experiment.world, experiment.agents
    if agents[0].params.layout.has_personal:
        raise ConfigError(
            "the bounds are of one model for all agents, and these have personal parameters",
            "measure a run without personal parameters",
        )
    data = {a.id: a.data for a in agents}
    size = config.data.batch_size

    def constants(mean: Any, iterations: int) -> Any:
        return measure(
            world, experiment.objective, mean, data, size,
            max_pairs=args.pairs, iterations=iterations,
        )  # fmt: skip

    start = constants(average_model(world, agents), args.iterations)
    result: dict[str, Any] = {"source": str(args.source), "constants": start.to_json()}
    job.together(start.problem)
    begin = _gradient_at_start(config, experiment) if is_run else {}
    if is_run:
        models = saved_models(experiment)
        found = constants(models.mean(), 0).to_json()
        models.close()
        result["checkpoint"] = {"round": models.round, "constants": found}
    experiment.close()
    if job.is_root:
        problem = start.problem()
        try:
            result["prediction"] = _predict(config, experiment, problem, args.delay)
        except OverflowError:
            raise ConfigError(
                f"the bound at optim.lr = {config.optim.lr:g} and run.rounds = {config.run.rounds} "
                "is beyond all numbers",
                "take a smaller step, or fewer rounds",
            ) from None
        if is_run:
            result["measured"] = _measured(args.source, begin)
        result["advice"] = _advise(args, config, experiment, problem)
        print(json.dumps(result, indent=1) if args.json else table(result, args.top))
    return 0


def _check(args: argparse.Namespace) -> None:
    for key, low in (("pairs", 0), ("iterations", 0), ("delay", 0), ("top", 1)):
        given = getattr(args, key)
        if given is not None and given < low:
            raise ConfigError(f"--{key} {given} is too small", f"give {low} or more")
    if args.graphs and args.methods and "dsgd" not in args.methods:
        raise ConfigError(
            f"--graphs {' '.join(args.graphs)} would be ignored: fedavg has a server and no graph",
            "leave --graphs out, or name dsgd among --methods",
        )
    if min(args.local_steps) < 1:
        raise ConfigError(f"--local-steps {min(args.local_steps)}", "give 1 or more")
    _budget(args, 1)


def _config(args: argparse.Namespace, is_run: bool, say: Callable[[str], None]) -> Config:
    if is_run:
        return read_run(args.source, args.set, say)
    config = load(args.source, args.set)
    return find_paths(config, args.source, say, training=False)


def _budget(args: argparse.Namespace, rounds: int) -> Any:
    from decdpo.theory.advisor import Budget

    asked = (args.budget_rounds, args.budget_bytes, args.budget_seconds)
    if asked == (None, None, None):
        return Budget(rounds=rounds)
    return Budget(*asked, args.seconds_per_byte, args.seconds_per_gradient)


def _predict(
    config: Config, experiment: "Experiment", problem: Any, delay: int | None
) -> dict[str, Any]:
    """Return the bound of the configuration as it stands, and the largest stable step."""
    from decdpo.theory.advisor import per_round
    from decdpo.theory.bounds import decentralized, federated, stale
    from decdpo.theory.stability import largest_stable_step, smallest_eigenvalue

    n, eta, rounds = problem.num_agents, config.optim.lr, config.run.rounds
    steps = config.algorithm.local_steps
    schedule: Any = experiment.schedule
    kind = config.algorithm.kind
    found: dict[str, Any] = {"algorithm": kind, "lr": eta, "rounds": rounds, "local_steps": steps}
    lowest, curvature = None, problem.smoothness_max
    if config.topology is None:
        server = config.algorithm
        participants = (server.participants if isinstance(server, FedAvg) else 0) or n
        found.update(formula="FedDPO", participants=participants)
        bounds = {"bound": federated(problem, eta, rounds, steps, participants)}
        if steps == 1 and participants == n:
            curvature = problem.smoothness
    else:
        rho = per_round(schedule)
        if config.algorithm.overlap:
            lowest = smallest_eigenvalue(schedule, n)
        found.update(formula="DecDPO", rho=rho, graph=config.graph, lambda_min=lowest)
        bounds = {"bound": decentralized(problem, eta, rounds, steps, rho)}
        if delay is None:
            delay = config.staleness.max_age
        if delay:
            own = sum(schedule.mixing(0).row(i).own for i in range(n)) / n
            late = stale(problem, eta, rounds, steps, rho, delay=delay, own=own)
            bounds[f"bound_{delay}_rounds_late"] = late
    for name, bound in bounds.items():
        found[name] = {
            "total": bound.total, "terms": bound.terms, "step_limit": bound.step_limit,
            "dominant": bound.dominant,
        }  # fmt: skip
    steps_differ, others = _not_covered(config)
    found["applies"] = not (steps_differ or others)
    found["not_covered"] = steps_differ + others
    stable = None if steps_differ else largest_stable_step(curvature, steps, lowest)
    found["largest_stable_step"] = stable
    return found


def _not_covered(config: Config) -> tuple[list[str], list[str]]:
    """Return what the theory leaves out: settings that make other steps, and all others."""
    algorithm, optim, age = config.algorithm, config.optim, config.staleness.max_age
    momentum = optim.momentum if isinstance(optim, Sgd) else 0.0
    server = algorithm.server_momentum if isinstance(algorithm, FedAvg) else 0.0
    steps, others = [], []
    if algorithm.kind not in ("dsgd", "fedavg", "centralized"):
        steps.append(
            f"algorithm.kind = {algorithm.kind!r}: the theory is of dsgd, fedavg and centralized"
        )
    if algorithm.fragments > 1:
        steps.append(
            f"algorithm.fragments = {algorithm.fragments}: the theory mixes the whole vector in "
            "every round"
        )
    if config.pace.own:
        steps.append(f"pace.kind = {config.pace.kind!r}: the theory's agents step alike")
    if config.privacy.on:
        steps.append(f"privacy.kind = {config.privacy.kind!r}: the theory adds no noise")
    if optim.kind != "sgd":
        steps.append(f"optim.kind = {optim.kind!r}: the theory is of sgd")
    for key, value, why in (
        ("optim.momentum", momentum, "the theory's steps have none"),
        ("optim.weight_decay", optim.weight_decay, "the loss of the theory has no such term"),
        ("algorithm.server_momentum", server, "the server of the theory averages, no more"),
        ("staleness.max_age", age, "the bound for late messages is our extrapolation"),
    ):
        if value:
            steps.append(f"{key} = {value:g}: {why}")
    if optim.schedule != "constant":
        others.append(f"optim.schedule = {optim.schedule!r}: the theory's step is constant")
    if optim.warmup_steps:
        others.append(f"optim.warmup_steps = {optim.warmup_steps}: the theory's step is constant")
    if optim.clip_norm:
        others.append(f"optim.clip_norm = {optim.clip_norm:g}: the theory does not clip gradients")
    if config.topology is not None and config.topology.weights == "pairs":
        others.append(
            "topology.weights = 'pairs': the objective of the theory counts all agents alike"
        )
    if isinstance(algorithm, FedAvg) and algorithm.weighting != "equal":
        others.append(
            f"algorithm.weighting = {algorithm.weighting!r}: the objective of the theory counts "
            "all agents alike"
        )
    return steps, others


def _gradient_at_start(config: Config, experiment: "Experiment") -> dict[str, float]:
    """Return ||grad L(x_0)||^2 on the pairs that the run's gradient norms are of. Collective.

    Together with their number, and that of all training pairs.
    """
    import numpy as np

    from decdpo.build import make_heldout
    from decdpo.metrics.evaluation import average_model
    from decdpo.theory.curvature import CHUNK, mean_gradient

    world, agents = experiment.world, experiment.agents
    rows = make_heldout(config, world, agents)[0].gradient_rows
    mean = average_model(world, agents)
    objective = experiment.objective
    gradients = {
        a.id: mean_gradient(objective, mean, a.data, rows[a.id], CHUNK)[1] for a in agents
    }
    gradient = world.sum(gradients) / world.num_agents
    pairs = world.sum({a.id: np.array([len(rows[a.id]), a.data.num_train]) for a in agents})
    return {
        "first": float(gradient @ gradient), "pairs": int(pairs[0]), "of_pairs": int(pairs[1]),
    }  # fmt: skip


def _measured(folder: Path, start: dict[str, float]) -> dict[str, float]:
    """Return the mean, first, smallest and last ||grad L(x_bar)||^2 of a run.

    mean : over the rounds, of the models that they began from. start : of ``_gradient_at_start``.
    rounds : up to the last record.
    """
    from decdpo.report.curves import read_metrics
    from decdpo.theory.series import mean_over_rounds

    path = folder / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    squares = {
        r["round"]: r["gradient_norm"] ** 2
        for r in records
        if r["round"] > 0 and r.get("gradient_norm") is not None
    }
    if not squares:
        return {}
    series = {0: start["first"], **squares}
    return {
        **start,
        "mean": mean_over_rounds(list(series), list(series.values())),
        "smallest": min(series.values()),
        "last": list(series.values())[-1],
        "records": len(squares),
        "rounds": max(squares),
    }


def _advise(
    args: argparse.Namespace, config: Config, experiment: "Experiment", problem: Any
) -> list[dict[str, Any]]:
    from decdpo.theory.advisor import advise, suitable
    from decdpo.topology.schedule import make_schedule

    n = problem.num_agents
    methods = args.methods or (("dsgd",) if args.graphs else METHODS)
    if "dsgd" not in methods:
        topologies = []
    elif args.graphs:
        topologies = [(graph, make_schedule(graph, "auto", n)) for graph in args.graphs]
    else:
        topologies = suitable(GRAPHS, n)
    layout = experiment.objective.policy.layout
    choices = advise(
        problem,
        _budget(args, config.run.rounds),
        topologies,
        message_bytes=layout.num_shared * layout.dtype.itemsize,
        local_steps=args.local_steps,
        participants=None if "fedavg" in methods else (),
    )
    return [choice.to_json() for choice in choices]
