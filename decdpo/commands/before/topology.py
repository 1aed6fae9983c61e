"""Show how fast graphs mix and what they cost, before any agent is trained on them.

One line per graph, weight rule and number of agents. rho is the factor by which one round (of a
time-varying schedule: one period of p rounds, written as rho/p) contracts the consensus error, the
distance of the agents from their average; links, messages and bytes are those of one round.

With --bandwidth three more columns say what to expect of a network: the time of a round, the time
until the distance to the average is a thousandth, and that of an all-reduce of the same messages.
tools/scaling.py measures such constants.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decdpo.errors import TopologyError
from decdpo.topology.names import GRAPHS, RANDOM, WEIGHTS, options_used

if TYPE_CHECKING:
    from decdpo.topology.analysis import Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo topology``."""
    parser.add_argument(
        "graphs", nargs="+", metavar="GRAPH", help=f"one or more of {', '.join(GRAPHS)}"
    )
    parser.add_argument(
        "--agents",
        type=int,
        nargs="+",
        metavar="N",
        help="number of agents, or several (default 8; for graph 'file' what the file holds)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=["auto"],
        metavar="RULE",
        help=f"weight rule, or several, of {', '.join(WEIGHTS)} (default auto)",
    )
    parser.add_argument("--degree", type=int, help="degree of random_regular and small_world")
    parser.add_argument(
        "--probability",
        type=float,
        metavar="P",
        help="edge probability of erdos_renyi, rewiring probability of small_world",
    )
    parser.add_argument("--seed", type=int, help="seed of random graphs (default 0)")
    parser.add_argument(
        "--file", type=Path, help="edge list, or matrix as .npz, .npy or .csv, for 'file'"
    )
    parser.add_argument(
        "--params",
        type=float,
        default=1_000_000,
        metavar="N",
        help="values in a message, for the bytes per round (default 1e6)",
    )
    parser.add_argument(
        "--value-bytes",
        type=int,
        default=4,
        choices=(1, 2, 4, 8),
        help="bytes of a value: 4 for float32 (default), 2 for bfloat16, 8 for float64",
    )
    parser.add_argument(
        "--bandwidth", type=float, metavar="GBIT", help="of an agent's link, Gbit/s each way"
    )
    parser.add_argument(
        "--latency", type=float, metavar="US", help="of a message, microseconds (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the graphs (.png, .svg or .pdf)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table or the JSON, draw the picture if wanted, and return 0."""
    _check(args)
    from decdpo.report.topology_table import table
    from decdpo.topology.analysis import summarize
    from decdpo.topology.files import count_agents
    from decdpo.topology.schedule import chosen_rule, make_schedule

    options = {
        key: getattr(args, key)
        for key in ("degree", "probability", "file")
        if getattr(args, key) is not None
    }
    cases = []
    for graph in args.graphs:
        held = graph == "file" and args.file is not None and not args.agents
        for num_agents in [count_agents(args.file)] if held else args.agents or [8]:
            for weights in args.weights:
                # What training takes for auto; push weights, which few algorithms can use, by name.
                rule = chosen_rule(graph, weights, args.file)
                used = options_used(graph, rule)
                schedule = make_schedule(
                    graph,
                    rule,
                    num_agents,
                    seed=args.seed or 0,
                    push_sum=True,
                    **{key: value for key, value in options.items() if key in used},
                )
                summary = summarize(
                    schedule,
                    graph,
                    rule,
                    num_params=int(args.params),
                    value_size=args.value_bytes,
                )
                cases.append((schedule, summary))
    summaries = [summary for _, summary in cases]
    timed = _timed(args, summaries)
    if args.json:
        documents = [summary.to_json() for summary in summaries]
        for document, times in zip(documents, timed):
            document |= times
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    else:
        print(table(summaries, timed))
    if args.plot is not None:
        from decdpo.report.topology_plot import plot

        plot(cases, args.plot)
        print(f"drawn to {args.plot}", file=sys.stderr)
    return 0


def _timed(args: argparse.Namespace, summaries: "Sequence[Summary]") -> list[dict[str, float]]:
    """Return the seconds of each topology on the given network, none without a bandwidth."""
    if args.bandwidth is None:
        return []
    from decdpo.theory.cost import Link, Timed

    link = Link(1e-6 * (args.latency or 0.0), 0.0, 8e-9 / args.bandwidth)
    size = int(args.params) * args.value_bytes
    return [
        asdict(Timed.of(link, s.nodes, s.degree_max, size, s.rho, s.period)) for s in summaries
    ]


def _check(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense, and options that none of the graphs would use."""
    if args.params < 0 or args.params != args.params // 1:
        raise TopologyError(f"--params {args.params:g} is no number of values", "give a count")
    if not 0 <= (args.seed or 0) < 2**64:
        raise TopologyError(f"--seed {args.seed} is not in 0 ... 2**64 - 1", "choose another")
    if args.seed is not None and not any(graph in RANDOM for graph in args.graphs):
        raise TopologyError(
            f"--seed {args.seed} would be ignored: {', '.join(args.graphs)} is not random",
            "leave --seed out",
        )
    if args.bandwidth is not None and not 0 < args.bandwidth < math.inf:
        raise TopologyError(f"--bandwidth is {args.bandwidth:g} Gbit/s", "give more than 0")
    if args.latency is not None and not 0 <= args.latency < math.inf:
        raise TopologyError(f"--latency is {args.latency:g} us", "give at least 0")
    if args.latency is not None and args.bandwidth is None:
        raise TopologyError(
            f"--latency {args.latency:g} would be ignored without --bandwidth", "give both"
        )
    given: dict[str, Any] = {k: getattr(args, k) for k in ("degree", "probability", "file")}
    for key, value in given.items():
        if value is not None and not any(
            key in options_used(graph, weights) for graph in args.graphs for weights in args.weights
        ):
            raise TopologyError(
                f"--{key} {value} would be ignored: {', '.join(args.graphs)} with weights "
                f"{', '.join(args.weights)} does not use it",
                f"leave --{key} out",
            )
