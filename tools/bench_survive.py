"""Time a round of communication with faults.on_loss = "abort" and "survive", while none is lost.

    mpirun --with-ft ulfm --oversubscribe -n 2 python tools/bench_survive.py [--size 1e6]

Agents on a ring, one a rank, mix ``size`` floats in turns, round by round, in one job. Printed are
lower quartile and median of the slowest rank in ms, and the median of survive - p2p in a turn:

    auto        abort, by shared memory where there is some; p2p with every message sent
    survive     p2p and the agreement on the round
    agreement   the agreement alone, of ranks that come together

``--compute MS`` computes so long before collecting, as with algorithm.overlap = true.
"""

import argparse
import time
from collections.abc import Callable

import networkx
import numpy as np
import torch

from decdpo.benchmarks.exchange import row_of
from decdpo.comm.mpi import boot
from decdpo.comm.mpi.world import MpiWorld, connect

KINDS = {"auto": ("auto", False), "p2p": ("p2p", False), "survive": ("p2p", True)}


def rounds_of(world: MpiWorld, size: int, compute: float) -> Callable[[int], None]:
    """Return what takes one round by its number. Collective."""
    exchange = world.exchange(size, torch.float32)
    (agent,) = world.local_agents
    row = row_of(networkx.cycle_graph(world.num_agents), agent)
    x, work = torch.full((size,), float(agent)), np.ones(20_000)

    def step(turn: int) -> None:
        exchange.start(agent, turn, row, x)
        end = time.perf_counter() + compute
        while time.perf_counter() < end:
            np.dot(work, work)
        world.commit(turn, exchange.collect(turn))
        exchange.inbox(agent, turn).displace(x)

    return step


def main() -> None:
    """Time the rounds, and print them on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=float, default=1e6, help="floats of a message (%(default)g)")
    parser.add_argument("--rounds", type=int, default=100, help="of each kind (%(default)s)")
    parser.add_argument("--compute", type=float, default=0.0, help="ms in a round (%(default)g)")
    args = parser.parse_args()
    ranks = boot.start()
    worlds = [connect(ranks, transport=way, survive=kept) for way, kept in KINDS.values()]
    steps = dict(zip(KINDS, (rounds_of(w, int(args.size), args.compute / 1e3) for w in worlds)))
    steps["agreement"] = lambda turn: worlds[-1].commit(turn, True) and None
    comm = boot.library().COMM_WORLD.Dup()
    times = np.zeros((args.rounds, len(steps)))
    for turn in range(args.rounds):
        for column in np.roll(np.arange(len(steps)), turn):
            comm.Barrier()
            began = time.perf_counter()
            list(steps.values())[column](turn)
            times[turn, column] = 1e3 * (time.perf_counter() - began)
    slowest = np.zeros_like(times)
    comm.Allreduce(times, slowest, op=boot.library().MAX)
    if worlds[0].is_root:
        found = dict(zip(steps, slowest[args.rounds // 5 :].T))
        said = [f"{n} {np.quantile(c, 0.25):.3f} {np.median(c):.3f}" for n, c in found.items()]
        more = np.median(found["survive"] - found["p2p"])
        print(f"{ranks} ranks, {args.size:g} floats: {', '.join(said)}; survive - p2p {more:+.3f}")
    for world in worlds:
        world.close()


if __name__ == "__main__":
    main()
