"""What is recorded while training: one JSON line per recorded round.

Everything outside ``system`` is a function of the configuration alone: the same bits for any
placement of the agents and across a kill and resume. ``system`` holds times and traffic.
"""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from decdpo.evaluation import HeldOut, average_model, gradient_norm, pool, squared_gaps
from decdpo.policies.stats import Stats
from decdpo.progress import Progress
from decdpo.records import Writer, keep_until
from decdpo.run import Run

RECORDS = "metrics.jsonl"
"""The file in the run folder, and the key of its mark in a checkpoint."""


class Metrics:
    """The monitor of a run: writes ``metrics.jsonl`` and shows progress.

    rho : second largest modulus of an eigenvalue of the mixing matrix, None without one.
    """

    def __init__(
        self,
        path: Path,
        heldout: HeldOut,
        *,
        every: int,
        rho: float | None,
        progress: Progress,
        start_round: int,
        is_root: bool,
    ) -> None:
        self.every = every
        self.rho = rho
        self.heldout = heldout
        self.progress = progress
        self.last: dict[str, Any] = {}
        self._file: Writer | None = None
        self._seen = np.zeros(0)
        self._waits: dict[int, float] = {}
        self._computed = 0.0
        self._clock = perf_counter()
        if is_root:
            keep_until(path, start_round)
            self._file = Writer(path)

    def observe(self, round: int, run: Run, seconds: float) -> None:
        """Record ``round`` if it is due, and show progress. Collective when due.

        seconds : spent in this round's local steps by this process.
        """
        done = round + 1
        self._computed += seconds
        if done % self.every == 0 or done == run.num_rounds:
            self.last = self._record(round, run)
            if self._file is not None:
                self._file.write(self.last)
        self.progress.show(done, self.last)

    def sync(self) -> None:
        """Force the records to disk: called before a checkpoint that will rely on them."""
        if self._file is not None:
            self._file.sync()

    def mark(self) -> dict[str, Any]:
        """Return how far the records go, for the checkpoint that will rely on them."""
        return {} if self._file is None else {RECORDS: self._file.mark.to_json()}

    def close(self) -> None:
        """Close the file and end the progress line."""
        self.progress.close()
        if self._file is not None:
            self._file.close()

    def _record(self, round: int, run: Run) -> dict[str, Any]:
        world, agents = run.world, run.agents
        world.occasion = f"the record of round {round + 1}"
        mean = average_model(world, agents)
        own = self.heldout.own(run)
        at_mean = self.heldout.average(run, mean)
        norm = gradient_norm(run, mean, self.heldout.gradient_rows)
        spent, waits = self._spent(run), self._waited(run)
        sums = pool(
            world,
            {a.id: a.stats.values for a in agents},
            {i: stats.values for i, stats in own.items()},
            {i: stats.values for i, stats in at_mean.items()},
            squared_gaps(agents, mean),
            {a.id: spent if a is agents[0] else np.zeros_like(spent) for a in agents},
        )
        train, heldout, average = (
            Stats(total, agents[0].stats.names).means() for total in sums[:3]
        )
        accuracy = {i: s.means().get("rewards/accuracies") for i, s in own.items()}
        # One for every process: its first agent's.
        longest = {a.id: _longest(waits) if a is agents[0] else None for a in agents}
        every_agent = world.collect({i: (accuracy[i], longest[i]) for i in accuracy})
        record: dict[str, Any] = {"round": round + 1, **train}
        record["lr"] = run.lr((round + 1) * run.local_steps - 1)
        record["gradient_norm"] = norm
        record["consensus_distance"] = float(sums[3][0]) / world.num_agents
        record["rho"] = self.rho
        if heldout:
            record["heldout/loss"] = heldout["loss"]
            record["heldout/accuracy"] = heldout["rewards/accuracies"]
            record["heldout/average/loss"] = average["loss"]
            record["heldout/average/accuracy"] = average["rewards/accuracies"]
        record["heldout/accuracy_by_agent"] = [every_agent[i][0] for i in range(world.num_agents)]
        record["system"] = self._system(sums[4], [pair for _, pair in every_agent.values() if pair])
        return record

    def _spent(self, run: Run) -> np.ndarray:
        """Return this process's messages, bytes, seconds waited and computed since the last record.

        After these come the letters that were 0, 1, ... rounds old, where they may be late.
        """
        seen = np.zeros(3)
        if run.exchange is not None:
            counters = run.exchange.counters
            traffic = (counters.messages_sent, counters.bytes_sent, counters.wait_seconds)
            seen = np.array([*traffic, *counters.ages], dtype=np.float64)
        fresh = seen - self._seen if self._seen.size == seen.size else seen
        self._seen = seen
        computed, self._computed = self._computed, 0.0
        return np.insert(fresh, 3, computed)

    def _waited(self, run: Run) -> dict[int, float]:
        """Return the seconds this process waited for each remote agent since the last record."""
        seen = {} if run.exchange is None else dict(run.exchange.counters.wait_by_neighbour)
        fresh = {i: seconds - self._waits.get(i, 0.0) for i, seconds in seen.items()}
        self._waits = seen
        return fresh

    def _system(self, total: np.ndarray, waits: list[tuple[int, float]]) -> dict[str, Any]:
        """Return the traffic and times of all processes as a record.

        waits : the agent that a process waited for longest, and the seconds, of every process.
        """
        now = perf_counter()
        took, self._clock = now - self._clock, now
        record: dict[str, Any] = {
            "messages": int(total[0]),
            "bytes": int(total[1]),
            "wait_seconds": round(float(total[2]), 6),
            "compute_seconds": round(float(total[3]), 6),
            "elapsed_seconds": round(took, 6),
        }
        if waits:
            agent, seconds = max(waits, key=lambda pair: pair[1])
            record["longest_wait_agent"] = int(agent)
            record["longest_wait_seconds"] = round(float(seconds), 6)
        if total.size > 4:
            record["ages"] = [int(count) for count in total[4:]]
        return record


def _longest(waits: Mapping[int, float]) -> tuple[int, float] | None:
    """Return the agent waited for longest and the seconds, None if it was no microsecond."""
    agent, seconds = max(waits.items(), key=lambda pair: pair[1], default=(0, 0.0))
    return (agent, seconds) if seconds >= 1e-6 else None
