"""How many rounds a second a graph allows, on several nodes of a given bandwidth and beyond.

    python tools/scaling.py --out FOLDER [--rates 100,400] [--ranks 2,4,8]

Every rank gets a network namespace of its own, as a node: a bridge joins them, and a token bucket
limits what a node sends and receives to so many Mbit/s. mpirun reaches the nodes as it would reach
machines, so that messages go through TCP and no memory is shared. Needs root, `ip` and `tc` of
iproute2, and Open MPI. Delays would need netem, which not every kernel has, and are not added.

Timed in turns are a round of ours (post, wait, mix), the same messages by bare MPI, and MPI's
Allreduce. The constants of decdpo.theory.cost are fitted to the rounds of ours at each rate, held
against all three, and say what rounds would take with up to 10,000 agents. FOLDER then has
measured.csv, model.csv and a figure.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decdpo.errors import DecdpoError, EnvironmentFault
from decdpo.theory.cost import THOUSANDTH, Link, Timed, fit, rounds_to

GRAPHS = ("ring", "exponential", "complete")
SIZES = (100, 25_000, 250_000)
"""Floats of a message: 400 bytes, 100 kB and 1 MB."""
CONTESTANTS = ("ours", "bare", "allreduce")
SAMPLE = 0.3
"""Seconds of one sample of one contestant, about."""
BURST = "64kb"
"""What a node may send at once: the longest piece that the kernel hands over."""

FAR = ("ring", "torus", "random_regular", "exponential", "one_peer_exponential")
AGENTS = (8, 16, 36, 64, 144, 256, 576, 1024, 2500, 4900, 10_000)
ADAPTER, WHOLE = 9_800_000, 538_000_000
"""Bytes of a message: adapters of rank 8, and all weights, of a model of 135 million parameters."""


class Nodes:
    """Network namespaces that stand for nodes, joined by a bridge.

    count : nodes. rate : Mbit/s of each, both ways. folder : for the script that reaches them.
    """

    def __init__(self, count: int, rate: float, folder: Path) -> None:
        self.count, self.rate = count, rate
        self.mark = f"d{os.getpid() % 100_000}"
        # Nodes of a run that was killed may still be there: each run has a network of its own.
        self.network = f"10.213.{os.getpid() % 256}"
        self.names = [f"{self.mark}n{i}" for i in range(count)]
        self.agent = folder / "reach"

    @contextmanager
    def up(self) -> Iterator[None]:
        """Make the nodes, and take them away at the end."""
        try:
            self._make()
            yield
        finally:
            # A node's end of its link would go some time after the node.
            links = [["link", "del", self.link(i)] for i in range(self.count)]
            nodes = [["netns", "del", name] for name in self.names]
            for words in (*links, *nodes, ["link", "del", self.mark]):
                subprocess.run(["ip", *words], stderr=subprocess.DEVNULL)

    def command(self, *words: str) -> list[str]:
        """Return the command with a rank on each node; words : further options, and the program."""
        from decdpo.comm.mpi.mpirun import find_mpirun

        return [
            find_mpirun(), "--prtemca", "plm_ssh_agent", str(self.agent),
            "--host", ",".join(self.names), "-n", str(self.count), "--map-by", "node",
            # All nodes share the cores of this machine: who waits lets others compute.
            "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", *words,
        ]  # fmt: skip

    def link(self, node: int) -> str:
        """Return the outer end of the link of a node."""
        return f"{self.mark}v{node}"

    def mpirun(self, program: Sequence[str], limit: float) -> None:
        """Run a program with a rank on each node. Raises ``EnvironmentFault`` if it fails."""
        command = self.command(*program)
        try:
            done = subprocess.run(command, timeout=limit, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(f"mpirun on {self.count} nodes: no end in {limit:g} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise EnvironmentFault(f"mpirun on {self.count} nodes: {done.returncode}: {last}")

    def _make(self) -> None:
        _do("ip", "link", "add", self.mark, "type", "bridge")
        _do("ip", "link", "set", self.mark, "up")
        # mpirun itself runs outside of the nodes, which report to it.
        _do("ip", "addr", "add", f"{self.network}.254/24", "dev", self.mark)
        for i, name in enumerate(self.names):
            outside = self.link(i)
            _do("ip", "netns", "add", name)
            _do("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            _do("ip", "link", "set", outside, "master", self.mark, "up")
            _do("ip", "-n", name, "addr", "add", f"{self.network}.{i + 1}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _do("ip", "-n", name, "link", "set", device, "up")
            limit = ["root", "tbf", "rate", f"{self.rate:g}mbit", "burst", BURST, "latency", "1s"]
            _do("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", *limit)
            _do("tc", "qdisc", "add", "dev", outside, *limit)
        # In place of ssh: options, a node's name, a command. A node has its own host name.
        self.agent.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nnode="$1"; shift\n'
            'exec ip netns exec "$node" unshare -u sh -c "hostname $node; $*"\n'
        )
        self.agent.chmod(0o755)


def _do(*words: str) -> None:
    """Run a command. Raises ``EnvironmentFault`` with what it says if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFault(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")


def as_rank(out: Path, samples: int) -> None:
    """Time the cells as one rank; rank 0 writes records to ``out``. Collective."""
    import numpy as np
    import torch

    from decdpo.benchmarks.exchange import Arena
    from decdpo.comm.mpi import boot

    torch.set_num_threads(1)
    ranks = boot.start()
    comm = boot.library().COMM_WORLD
    largest = boot.library().MAX

    def slowest(step: Any, times: int) -> float:
        comm.Barrier()
        began = time.perf_counter()
        for _ in range(times):
            step()
        taken = np.array([(time.perf_counter() - began) / times])
        comm.Allreduce(boot.library().IN_PLACE, taken, largest)
        return float(taken[0])

    records = []
    for graph in GRAPHS if ranks > 3 else GRAPHS[-1:]:
        for size in SIZES:
            arena = Arena(graph, size, list(CONTESTANTS), "")
            times = {
                name: max(1, min(200, int(SAMPLE / slowest(step, 2))))
                for name, step in arena.steps.items()
            }
            taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
            for _ in range(samples):
                for name, step in arena.steps.items():
                    taken[name].append(slowest(step, times[name]))
            records.append({
                "ranks": ranks, "graph": graph, "degree": len(arena.row.sources), "bytes": 4 * size,
                **{name: float(np.median(values)) for name, values in taken.items()},
                **{f"{name}_spread": max(v) / min(v) for name, v in taken.items()},
            })  # fmt: skip
            arena.close()
    if comm.Get_rank() == 0:
        out.write_text(json.dumps(records))


def measure(rates: Sequence[float], ranks: Sequence[int], samples: int, limit: float) -> list[Any]:
    """Return a record for every rate, number of ranks, graph and size; times in seconds."""
    found = []
    for rate in rates:
        for count in ranks:
            print(f"scaling: {count} nodes of {rate:g} Mbit/s", flush=True)
            with tempfile.TemporaryDirectory(prefix="decdpo-scaling-") as folder:
                made, out = Nodes(count, rate, Path(folder)), Path(folder) / "out.json"
                rank = [sys.executable, str(Path(__file__).resolve()), "--as-rank", str(out)]
                with made.up():
                    made.mpirun([*rank, "--samples", str(samples)], limit)
                found += [{"mbit": rate, **record} for record in json.loads(out.read_text())]
    return found


def fitted(records: Sequence[dict[str, Any]]) -> dict[float, Link]:
    """Return the network of each rate, fitted to our rounds; adds what it says to the records."""
    links = {}
    for rate in dict.fromkeys(record["mbit"] for record in records):
        own = [record for record in records if record["mbit"] == rate]
        link = fit([(r["degree"], r["bytes"], r["ours"]) for r in own])
        for record in own:
            record["model"] = link.gossip(record["degree"], record["bytes"])
            record["model_allreduce"] = link.all_reduce(record["ranks"], record["bytes"])
        links[rate] = link
    return links


def beyond(links: dict[float, Link]) -> list[dict[str, Any]]:
    """Return what the fitted networks say of many agents, a record a case."""
    from decdpo.topology.analysis import summarize
    from decdpo.topology.schedule import chosen_rule, make_schedule

    found = []
    for count in AGENTS:
        for graph in FAR:
            rule = chosen_rule(graph, "auto", None)
            options = {"degree": 4} if graph == "random_regular" else {}
            schedule = make_schedule(graph, rule, count, seed=0, push_sum=True, **options)
            summary = summarize(schedule, graph, rule)
            rounds = rounds_to(THOUSANDTH, summary.rho, summary.period)
            for rate, link in links.items():
                for size in (ADAPTER, WHOLE):
                    timed = Timed.of(
                        link, count, summary.degree_max, size, summary.rho, summary.period
                    )
                    once, whole = timed.round_seconds, timed.all_reduce_seconds
                    found.append({
                        "mbit": rate, "bytes": size, "agents": count, "graph": graph,
                        "degree": summary.degree_max, "rounds_per_second": 1 / once,
                        "all_reduces_per_second": 1 / whole, "round_over_all_reduce": once / whole,
                        "rounds_to_thousandth": rounds,
                        "thousandth_over_all_reduce": timed.thousandth_seconds / whole,
                    })  # fmt: skip
    return found


def draw(measured: Sequence[dict[str, Any]], far: Sequence[dict[str, Any]], out: Path) -> None:
    """Write the figure: what was measured with the model over it, and the model far beyond."""
    from decdpo.report.study_figures import Figure, Line, Panel
    from decdpo.report.study_figures import draw as paint

    panels = []
    most = max(record["bytes"] for record in measured)
    for rate in dict.fromkeys(record["mbit"] for record in measured):
        own = [r for r in measured if r["mbit"] == rate and r["bytes"] == most]
        lines = []
        for graph in (*GRAPHS, "all-reduce"):
            # Two nodes are every graph, and an all-reduce knows none.
            of = graph if graph in GRAPHS else GRAPHS[-1]
            rows = [r for r in own if r["graph"] == of or r["ranks"] == 2]
            key, model = ("ours", "model") if graph == of else ("allreduce", "model_allreduce")
            for name, style, column in (
                (graph, "points", key), (f"{graph}, model", "dashed", model)
            ):  # fmt: skip
                points = [(float(r["ranks"]), [1 / r[column]]) for r in rows]
                lines.append(Line.of(name, points, style, about=graph))
        title = f"measured: {most / 1e6:g} MB at {rate:g} Mbit/s"
        panels.append(Panel(title, "nodes", "rounds a second", tuple(lines), log_y=True))
    rate = max(record["mbit"] for record in far)
    own = [r for r in far if r["mbit"] == rate and r["bytes"] == ADAPTER]
    for column, whole, label in (
        ("rounds_per_second", "all_reduces_per_second", "rounds a second"),
        ("thousandth_over_all_reduce", "", "seconds to a thousandth / all-reduce"),
    ):
        lines = [
            Line.of(graph, [(float(r["agents"]), [r[column]]) for r in own if r["graph"] == graph])
            for graph in FAR
        ]
        if whole:
            rows = [r for r in own if r["graph"] == FAR[0]]
            points = [(float(r["agents"]), [r[whole]]) for r in rows]
            lines.append(Line.of("all-reduce", points))
        title = f"model: {ADAPTER / 1e6:g} MB at {rate:g} Mbit/s"
        panels.append(Panel(title, "agents", label, tuple(lines), True, True))
    paint(Figure("scaling", tuple(panels), columns=2), out)


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as CSV, numbers to four digits."""
    with path.open("w", newline="") as lines:
        table = csv.DictWriter(lines, list(records[0]), lineterminator="\n")
        table.writeheader()
        for record in records:
            table.writerow({
                k: f"{v:.4g}" if isinstance(v, float) else v for k, v in record.items()
            })  # fmt: skip


def rates(text: str) -> list[float]:
    """Return numbers above 0 as given, separated by commas. Raises ``ValueError``."""
    found = [float(word) for word in text.split(",")]
    if not all(0 < rate < float("inf") for rate in found):
        raise ValueError(text)
    return found


def nodes(text: str) -> list[int]:
    """Return numbers of nodes as given, enough for a fit. Raises ``ArgumentTypeError``."""
    found = [int(word) for word in text.split(",")]
    if min(found) < 2 or max(found) > 253 or len(set(found)) < 2 and max(found) < 4:
        # Of one number below four every graph is the complete one, with one degree.
        raise argparse.ArgumentTypeError(f"{text}: give 2 to 253, several or one of at least 4")
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, fit, say what follows, and write it; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--rates", default="100,400", type=rates, metavar="R,R", help="Mbit/s (%(default)s)"
    )
    parser.add_argument(
        "--ranks", default="2,4,8", type=nodes, metavar="N,N", help="nodes (%(default)s)"
    )
    parser.add_argument("--samples", type=int, default=5, help="of each (%(default)s)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a run (%(default)g)")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.as_rank is not None:
        as_rank(args.as_rank, args.samples)
        return 0
    if args.out is None:
        parser.error("name a folder with --out")
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        parser.error("making nodes needs root, and ip and tc of the package iproute2")
    # Ended from outside it takes its nodes away as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        measured = measure(args.rates, args.ranks, args.samples, args.limit)
        links = fitted(measured)
    except DecdpoError as fault:
        parser.exit(1, f"scaling: error: {fault}\n")
    write(args.out / "measured.csv", measured)
    for rate, link in links.items():
        print(
            f"{rate:g} Mbit/s: latency {1e6 * link.latency:.0f} us, {1e6 * link.overhead:.0f} us a "
            f"message, {8e-6 / link.per_byte:.0f} Mbit/s"
        )
    for record in measured:
        print(
            f"{record['mbit']:5g} Mbit/s {record['ranks']} nodes {record['graph']:12} "
            f"{record['bytes']:8} bytes: ours {1e3 * record['ours']:8.3f} ms, bare "
            f"{1e3 * record['bare']:8.3f}, model {1e3 * record['model']:8.3f}; Allreduce "
            f"{1e3 * record['allreduce']:8.3f}, model {1e3 * record['model_allreduce']:8.3f}"
        )
    far = beyond(links)
    write(args.out / "model.csv", far)
    draw(measured, far, args.out)
    print(f"see {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
