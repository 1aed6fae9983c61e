"""How long one round of communication takes, beside the simplest programs that do the same.

Every rank hosts one agent. The contestants take turns, sample by sample, in one run, so that load
from elsewhere hits all of them alike; a sample's time is that of the slowest rank. Started by
``decdpo bench exchange`` as ``mpirun python -m decdpo.benchmarks.exchange SPEC OUT``.

    ours       start, collect, inbox and displace, transport auto
    ours_p2p   the same with every message sent
    bare       the same messages by persistent requests of mpi4py, no copy, no mixing
    pass       one memory pass: a copy of the vector
    memcpy     the bytes received, copied within the process
    window     hand-written: copy into a shared-memory window, barrier, fused blockwise mixing
    allreduce  MPI Allreduce of the vector
    gloo       torch.distributed gloo, isend and irecv with the neighbours
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch

from decdpo.comm.links.window import PAGE
from decdpo.comm.mpi import boot
from decdpo.comm.mpi import world as mpi
from decdpo.files import replacing
from decdpo.messages import BLOCK
from decdpo.topology.row import Row

FLOAT = 4
Step = Callable[[], None]


def neighbours(graph: str, ranks: int) -> nx.Graph:
    """Return the undirected graph called ring, exponential or complete on ``ranks`` nodes."""
    if graph == "complete" or ranks <= 2:
        return nx.complete_graph(ranks)
    if graph == "ring":
        return nx.cycle_graph(ranks)
    if graph == "exponential":
        hops = [1 << k for k in range((ranks - 1).bit_length())]
        return nx.circulant_graph(ranks, hops)
    raise ValueError(f"graph {graph!r}")


def row_of(graph: nx.Graph, agent: int) -> Row:
    """Return the Metropolis row of ``agent``: w_ij = 1 / (1 + max(d_i, d_j))."""
    sources = tuple(sorted(graph[agent]))
    mine = len(sources)
    weights = tuple(1.0 / (1 + max(mine, len(graph[j]))) for j in sources)
    return Row(1.0 - sum(weights), sources, weights, sources)


def memory_needed(size: int, ranks: int, degree: int) -> dict[str, int]:
    """Return the bytes that each contestant needs on all ranks together, the dispensable last."""
    vector = FLOAT * size * ranks
    return {
        "ours": 2 * vector,
        "bare": degree * vector,
        "pass": 0,
        "memcpy": 0,
        "gloo": 0,
        "window": 2 * vector,
        "allreduce": vector,
        "ours_p2p": (2 + 2 * degree) * vector,
    }


class Arena:
    """One cell of the benchmark: ``ranks`` agents on ``graph`` with vectors of ``size`` floats.

    Collective. Every contestant is a callable that does one round.
    """

    def __init__(self, graph: str, size: int, names: list[str], store: str) -> None:
        self.size = size
        self._mpi = boot.library()
        self.comm = self._mpi.COMM_WORLD.Dup()
        self.rank, self.ranks = self.comm.Get_rank(), self.comm.Get_size()
        self.row = row_of(neighbours(graph, self.ranks), self.rank)
        self.x = torch.ones(size)
        self.out = torch.empty(size)
        self.received = [torch.zeros(size) for _ in self.row.sources]
        self._store = store
        self._closers: list[Step] = [self.comm.Free]
        self.steps = {name: getattr(self, f"_make_{name}")() for name in names}

    def close(self) -> None:
        """Free everything, the last first. Collective."""
        for closer in reversed(self._closers):
            closer()
        # The steps refer to the arena and it to them; the next cell may need this memory.
        self.__dict__.clear()

    def ours(self, transport: str, progress: str = "thread") -> tuple[Step, Step]:
        """Return the two halves of our round, before and after the compute."""
        world = mpi.connect(self.ranks, transport=transport, progress=progress)
        exchange = world.exchange(self.size, torch.float32)
        self._closers += [world.close]
        turn = iter(range(1 << 62))
        now = [0]

        def begin() -> None:
            now[0] = next(turn)
            exchange.start(self.rank, now[0], self.row, self.x)

        def end() -> None:
            exchange.collect(now[0])
            exchange.inbox(self.rank, now[0]).displace(self.x)

        return begin, end

    def _make_ours(self) -> Step:
        begin, end = self.ours("auto")
        return lambda: (begin(), end())[0]

    def _make_ours_p2p(self) -> Step:
        begin, end = self.ours("p2p")
        return lambda: (begin(), end())[0]

    def _make_bare(self) -> Step:
        sources = self.row.sources
        requests = [
            *(self.comm.Recv_init(m.numpy(), j, 1) for m, j in zip(self.received, sources)),
            *(self.comm.Send_init(self.x.numpy(), j, 1) for j in self.row.targets),
        ]
        kind = self._mpi.Prequest

        def step() -> None:
            kind.Startall(requests)
            kind.Waitall(requests)

        self._closers += [request.Free for request in requests]
        return step

    def _make_pass(self) -> Step:
        return lambda: np.copyto(self.out.numpy(), self.x.numpy())

    def _make_memcpy(self) -> Step:
        def step() -> None:
            for message in self.received:
                np.copyto(self.out.numpy(), message.numpy())

        return step

    def _make_window(self) -> Step:
        stride = -(-FLOAT * self.size // PAGE) * PAGE
        win = self._mpi.Win.Allocate_shared(2 * stride, 1, comm=self.comm)
        win.Lock_all()

        def slot(rank: int, parity: int) -> torch.Tensor:
            memory = np.frombuffer(win.Shared_query(rank)[0], dtype=np.uint8)[parity * stride :]
            return torch.from_numpy(memory[: FLOAT * self.size].view(np.float32))

        mine = [slot(self.rank, parity) for parity in range(2)]
        theirs = [[slot(j, parity) for j in self.row.sources] for parity in range(2)]
        for own in mine:
            own.zero_()
        total = -sum(self.row.weights)
        weights = (total, *self.row.weights)
        parities = iter(_alternate())

        def step() -> None:
            parity = next(parities)
            mine[parity].copy_(self.x)
            win.Sync()
            self.comm.Barrier()
            win.Sync()
            vectors = (self.x, mine[parity], *theirs[parity])
            for target, *terms in zip(*(vector.split(BLOCK) for vector in vectors)):
                for weight, term in zip(weights, terms):
                    target.add_(term, alpha=weight)

        def close() -> None:
            mine.clear()
            theirs.clear()
            win.Unlock_all()
            win.Free()

        self._closers.append(close)
        return step

    def _make_allreduce(self) -> Step:
        mine, total = self.out.numpy(), np.empty(self.size, dtype=np.float32)
        return lambda: self.comm.Allreduce(mine, total)

    def _make_gloo(self) -> Step:
        import torch.distributed as dist

        dist.init_process_group(
            "gloo", init_method=f"file://{self._store}", rank=self.rank, world_size=self.ranks
        )

        def step() -> None:
            works = [dist.irecv(m, j) for m, j in zip(self.received, self.row.sources)]
            works += [dist.isend(self.x, j) for j in self.row.targets]
            for work in works:
                assert work is not None
                work.wait()

        self._closers.append(dist.destroy_process_group)
        return step


def measure(arena: Arena, samples: int) -> dict[str, np.ndarray]:
    """Return (samples,) milliseconds of a round for each contestant, interleaved. Collective."""
    repeats = max(1, min(50, 4_000_000 // arena.size))
    taken = {name: np.empty(samples) for name in arena.steps}
    for sample in range(-1, samples):
        for name, step in arena.steps.items():
            # One round untimed: the contestant before has left its own vectors in the caches.
            step()
            arena.comm.Barrier()
            began = time.perf_counter()
            for _ in range(repeats):
                step()
            if sample >= 0:
                taken[name][sample] = (time.perf_counter() - began) / repeats * 1e3
    for times in taken.values():
        arena.comm.Allreduce(arena._mpi.IN_PLACE, times, arena._mpi.MAX)
    return taken


def hidden_share(arena: Arena, transport: str, progress: str, samples: int) -> float:
    """Return the part of a round that vanishes behind as much compute; 0 none, 1 all. Collective.

    Three times are measured in turn: the round alone (T), the compute alone (C), and start,
    compute, finish (B). Hidden is (T + C - B) / T.
    """
    begin, end = arena.ours(transport, progress)
    a = torch.randn(256, 256)
    b = torch.empty(256, 256)

    def compute(times: int) -> None:
        for _ in range(times):
            torch.mm(a, a, out=b)

    def best(*steps: Step) -> float:
        arena.comm.Barrier()
        began = time.perf_counter()
        for step in steps:
            step()
        taken = np.array([time.perf_counter() - began])
        arena.comm.Allreduce(arena._mpi.IN_PLACE, taken, arena._mpi.MAX)
        return float(taken[0])

    for _ in range(3):
        alone = best(begin, end)
    once = best(lambda: compute(50)) / 50
    times = max(1, round(alone / once))
    found: list[float] = []
    for _ in range(samples):
        whole = best(begin, end)
        busy = best(lambda: compute(times))
        both = best(begin, lambda: compute(times), end)
        found.append((whole + busy - both) / whole)
    return float(np.median(found))


def record(graph: str, arena: Arena, taken: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the JSON record of one cell: medians, quartiles, ratios."""
    middle = {name: float(np.median(times)) for name, times in taken.items()}
    found: dict[str, Any] = {
        "ranks": arena.ranks,
        "graph": graph,
        "size": arena.size,
        "degree": len(arena.row.sources),
        "samples": len(taken["ours"]),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "ms": middle,
        "quartiles_ms": {
            name: [float(q) for q in np.percentile(times, (25, 75))]
            for name, times in taken.items()
        },
        "least_ms": {name: float(times.min()) for name, times in taken.items()},
    }
    ours, bare, once = middle["ours"], middle["bare"], middle["pass"]
    found["ratio_to_bare"] = ours / bare
    found["ratio_to_bare_plus_pass"] = ours / (bare + once)
    found["overhead_us"] = 1e3 * (ours - bare - once)
    if "ours_p2p" in middle:
        found["p2p_ratio_to_bare_plus_pass"] = middle["ours_p2p"] / (bare + once)
        found["p2p_overhead_us"] = 1e3 * (middle["ours_p2p"] - bare - once)
    if "window" in middle:
        found["ratio_to_window"] = ours / middle["window"]
    return found


def run_cell(graph: str, size: int, samples: int, folder: str, room: int) -> dict[str, Any]:
    """Measure one cell, or say why it is skipped. Collective. room : bytes free for all ranks."""
    comm = boot.library().COMM_WORLD
    ranks = comm.Get_size()
    degree = max(dict(neighbours(graph, ranks).degree).values())
    needs = memory_needed(size, ranks, degree)
    skipped: dict[str, str] = {}
    total = 2 * FLOAT * size * ranks
    names = []
    for name, need in needs.items():
        if total + need > room:
            skipped[name] = f"needs {(total + need) / 1e9:.1f} GB, {room / 1e9:.1f} GB are free"
        else:
            names.append(name)
            total += need
    essential = {"ours", "bare", "pass"}
    if not essential <= set(names):
        why = next(skipped[name] for name in ("ours", "bare", "pass") if name in skipped)
        return {"ranks": ranks, "graph": graph, "size": size, "skipped": why}
    arena = Arena(graph, size, names, os.path.join(folder, f"gloo-{graph}-{size}"))
    found = record(graph, arena, measure(arena, samples))
    found["skipped_contestants"] = skipped
    cores = len(os.sched_getaffinity(0))
    if ranks > cores:
        found["hidden"] = f"not measured: {ranks} ranks share {cores} cores"
    elif "ours_p2p" in skipped or size < 1_000_000:
        found["hidden"] = "not measured at this size"
    else:
        found["hidden"] = {
            "window": hidden_share(arena, "auto", "none", samples),
            "p2p with progress thread": hidden_share(arena, "p2p", "thread", samples),
            "p2p without": hidden_share(arena, "p2p", "none", samples),
        }
    arena.close()
    return found


def main() -> None:
    """Run the cells of the JSON specification argv[1]; rank 0 writes the records to argv[2]."""
    spec, out = json.loads(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    boot.start()
    comm = boot.library().COMM_WORLD
    records = []
    for graph in spec["graphs"]:
        for size in spec["sizes"]:
            # One rank's reading of the free memory, so that all decide alike.
            room = np.array([_free_memory()], dtype=np.int64)
            comm.Bcast(room)
            folder = os.path.dirname(out)
            records.append(run_cell(graph, size, spec["samples"], folder, int(0.7 * room[0])))
            if comm.Get_rank() == 0:
                # Whoever stops this program reads what is there.
                with replacing(Path(out)) as partial:
                    partial.write_text(json.dumps(records))


def _alternate() -> Iterator[int]:
    while True:
        yield 0
        yield 1


def _free_memory() -> int:
    with open("/proc/meminfo") as lines:
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kib) * 1024


if __name__ == "__main__":
    main()
