"""What is recorded while training: one JSON line per recorded round.

Round 0 is the start, before any local step. Everything outside ``system`` is a function of the
configuration alone: the same bits for any placement of the agents and across a kill and resume.
``system`` holds times, and what travelled between processes and nodes.
"""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from decdpo.metrics.account import Account, could, round_work
from decdpo.metrics.dashboard import FOLDER, Dashboard
from decdpo.metrics.divergence import Divergence
from decdpo.metrics.evaluation import (
    HeldOut,
    average_model,
    initial_model,
    pool,
    pooled,
    squared_gaps,
    squared_lengths,
)
from decdpo.metrics.interference import Interference, relative
from decdpo.metrics.privacy import Spent
from decdpo.metrics.traffic import Sent, of_first
from decdpo.params.flat import FlatParams
from decdpo.policies.lm.work import Work, peak_memory
from decdpo.policies.stats import Stats
from decdpo.progress import Progress
from decdpo.records import Writer, keep_until, read_records, take_over
from decdpo.run import Run
from decdpo.timing import MOST_WAITS, longest, pace, spread

COUNTED = (
    "messages_sent",
    "bytes_sent",
    "messages_to_nodes",
    "bytes_to_nodes",
    "wait_seconds",
)
"""What a record has of the counters of an exchange."""

JUDGED, ACCURACIES = "rewards/accuracies", "/accuracies"
"""The accuracy of the implicit rewards, and how the names of those a loss adds end."""

RECORDS = "metrics.jsonl"
"""The file in the run folder, and the key of its mark in a checkpoint."""


class Metrics:
    """The monitor of a run: writes ``metrics.jsonl`` and shows progress.

    rho : second largest modulus of an eigenvalue of the mixing matrix, None without one.
    measures : what is measured, in words, said when the run begins; empty where it is everything.
    diverged_above : multiple of the start's loss above which a run diverges, see ``divergence.py``;
    0 to go on whatever the loss. dashboard : whether records become TensorBoard events as well.
    interference : of adapters that are mixed factor by factor. spent : counts privacy.
    started : loss and length of the parameters at the start, measured unless they are set before.
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
        diverged_above: float = 0.0,
        measures: str = "",
        dashboard: bool = False,
        interference: Interference | None = None,
        spent: Spent | None = None,
    ) -> None:
        self.every = every
        self._interference = interference
        self.spent = spent
        self._measures = measures
        self.rho = rho
        self.heldout = heldout
        self.progress = progress
        self.last: dict[str, Any] = {}
        self._file: Writer | None = None
        self._tensorboard = dashboard
        self._dashboard: Dashboard | None = None
        self._above = diverged_above
        self.started: tuple[float, float] | None = None
        self._divergence = Divergence(0.0, 0.0, 0.0)
        self._looked: tuple[int, float | None, float] = (-1, None, 0.0)
        self._sent: Sent | None = None
        self._seen = np.zeros(0)
        self._parts: dict[str, float] = {}
        self._waits: dict[int, float] = {}
        self._computed = 0.0
        self._measured = 0.0
        self._work = Work()
        self.account = Account()
        self._clock = perf_counter()
        self._path, self._start = path, start_round
        self._events: list[Mapping[str, Any]] = []
        if is_root:
            # The record of round 0 is written anew by whoever begins there.
            keep_until(path, start_round or -1)
            self._file = Writer(path)
            if dashboard:
                earlier = read_records(path)
                self._dashboard = Dashboard(path.parent / FOLDER, start_round, earlier)

    def begin(self, run: Run) -> None:
        """Measure where the run began, and record it as round 0 if it begins now. Collective."""
        if run.next_round < run.num_rounds and self._measures:
            self.progress.note(f"decdpo: measured: {self._measures}")
        if run.next_round >= run.num_rounds or (run.next_round and not self._above):
            return
        if run.next_round == 0 or self.started is None:
            began = perf_counter()
            run.world.purpose = "the record of round 0"
            with self.progress.working("measuring the start"):
                model = initial_model(run)
                train = self.heldout.training(run, model)
                loss = pooled(run.world, train).means().get("loss", 0.0)
                length = float(np.sqrt(pool(run.world, squared_lengths(run.agents, model))[0][0]))
                self.started = loss, length / float(np.sqrt(run.world.num_agents))
                if run.next_round == 0:
                    at_start = self.heldout.average(run, model)
                    self._write(self._record(0, run, train, at_start, at_start, model, began))
        needs = run.algorithm.needs
        self._divergence = Divergence(self._above, *self.started, needs.smaller_steps)
        self.progress.show(run.next_round, self.last)

    def observe(self, round: int, run: Run, seconds: float) -> None:
        """Record ``round`` if it is due, and show progress. Collective when due.

        seconds : spent in this round's local steps by this process.

        Raises ``Diverged`` on all processes if the run has diverged.
        """
        done = round + 1
        self._computed += seconds
        work = round_work(run, round)
        self._work += work
        self.account.add(run, work)
        last = done == run.num_rounds
        if done % self.every == 0 or last:
            began = perf_counter()
            with self.progress.working(f"measuring round {done}"):
                run.world.purpose = f"the record of round {done}"
                mean = average_model(run.world, run.agents)
                own, at_mean = self.heldout.both(run, mean)
                train = {a.id: a.stats for a in run.agents}
                self._write(self._record(done, run, train, own, at_mean, mean, began))
            self._look(done, last)
        self.progress.show(done, self.last)

    def sound(self, round: int, run: Run, *, last: bool) -> bool:
        """Say whether the state after ``round`` is worth saving. Collective.

        last : whether the run would end here. Raises ``Diverged`` on all processes.
        """
        done = round + 1
        if self._above and self._looked[0] != done:
            train, lengths = pool(
                run.world,
                {a.id: a.stats.values for a in run.agents},
                squared_lengths(run.agents),
            )
            means = Stats(train, run.agents[0].stats.names).means()
            self._note(done, means, lengths, run.world.num_agents)
        return not self._look(done, last)

    def changed(self, event: Mapping[str, Any], run: Run) -> None:
        """Take note that agents were lost or have come; ``event`` is part of the next record.

        If this process is now the one that writes, it goes on with the file, and shows all anew.
        """
        self._events.append(event)
        self._sent = None
        for agent in run.agents:
            if agent.id not in self.heldout.rows:
                self.heldout.add(agent)
        self.rho = run.schedule.rho
        if run.world.is_root and self._file is None:
            self._file = take_over(self._path, self._start, self.last)
            if self._tensorboard:
                self._dashboard = Dashboard(self._path.parent / FOLDER, 0)
                for record in read_records(self._path):
                    self._dashboard.write(record)
            self.progress.speak()

    def working(self, what: str) -> Any:
        """Return a context in which ``what`` is done, which is said if it takes long."""
        return self.progress.working(what)

    def _write(self, record: dict[str, Any]) -> None:
        self.last = record
        if self._file is not None:
            self._file.write(record)
        if self._dashboard is not None:
            self._dashboard.write(record)

    def _note(
        self, done: int, train: Mapping[str, float], lengths: np.ndarray, num_agents: int
    ) -> None:
        """Keep what ``_look`` looks at; lengths : (1,) the sum of ||x_i||^2."""
        self._looked = done, train.get("loss"), float(np.sqrt(lengths[0] / num_agents))

    def _look(self, done: int, last: bool) -> str:
        """Return what is wrong after ``done`` rounds, and say it once; raise if it stays so."""
        before = self._divergence.doubt
        _, loss, length = self._looked
        doubt = self._divergence.look(done, loss, length, last=last)
        if doubt and not before:
            self.progress.note(f"decdpo: warning: round {done}: {doubt}; nothing is saved now")
        return doubt

    def sync(self) -> None:
        """Force the records to disk: called before a checkpoint that will rely on them."""
        if self._file is not None:
            self._file.sync()
        if self._dashboard is not None:
            self._dashboard.sync()

    def mark(self) -> dict[str, Any]:
        """Return how far the records go, for the checkpoint that will rely on them."""
        return {} if self._file is None else {RECORDS: self._file.mark.to_json()}

    def close(self) -> None:
        """Close the file and end the progress line."""
        self.progress.close()
        if self._file is not None:
            self._file.close()
        if self._dashboard is not None:
            self._dashboard.close()

    def _record(
        self,
        done: int,
        run: Run,
        trained: Mapping[int, Stats],
        own: Mapping[int, Stats],
        at_mean: Mapping[int, Stats],
        mean: FlatParams,
        began: float,
    ) -> dict[str, Any]:
        """Return the record after ``done`` rounds. Collective.

        trained : of the training pairs. own, at_mean : of the held-out pairs, by the agents' own
        models and by the average model ``mean``. began : when this process began to measure.
        """
        world, agents = run.world, run.agents
        norm = self.heldout.norm(run, mean)
        self._measured += perf_counter() - began
        worked = self._worked(run)
        parts = self._timed(run, perf_counter() - began)
        spent, waits = self._spent(run), self._waited(run)
        sums = pool(
            world,
            {i: stats.values for i, stats in trained.items()},
            {i: stats.values for i, stats in own.items()},
            {i: stats.values for i, stats in at_mean.items()},
            squared_gaps(agents, mean),
            squared_lengths(agents),
            of_first(run, np.array(self._traffic(run, done), dtype=np.float64)),
            of_first(run, spent),
            of_first(run, worked),
            self._missed(run),
        )
        train, heldout, average = (
            Stats(total, agents[0].stats.names).means() for total in sums[:3]
        )
        further = [n for n in agents[0].stats.names if n.endswith(ACCURACIES) and n != JUDGED]
        accuracy = {i: [s.means().get(n) for n in (JUDGED, *further)] for i, s in own.items()}
        memory = peak_memory()
        # What is of a process comes with its first agent.
        place = {"waits": longest(waits), "parts": parts, "memory": memory}
        mine = {a.id: place if a is agents[0] else None for a in agents}
        every_agent = world.collect({i: (accuracy[i], mine[i]) for i in accuracy})
        self._note(done, train, sums[4], world.num_agents)
        record: dict[str, Any] = {"round": done, **train}
        # Of the last local step; before the first one, of that.
        record["lr"] = run.lr(max(done * run.local_steps - 1, 0))
        record["gradient_norm"] = norm
        record["consensus_distance"] = float(sums[3][0]) / world.num_agents
        record["rho"] = self.rho
        record |= relative(sums[8])
        if self.spent is not None:
            record |= self.spent.record(run, done)
        if heldout:
            record["heldout/loss"] = heldout["loss"]
            record["heldout/accuracy"] = heldout["rewards/accuracies"]
            record["heldout/average/loss"] = average["loss"]
            record["heldout/average/accuracy"] = average["rewards/accuracies"]
            for name in further:
                record[f"heldout/{name}"] = heldout[name]
                record[f"heldout/average/{name}"] = average[name]
            if self._measures:
                record["heldout/pairs"] = int(sums[1][0])
        record["heldout/accuracy_by_agent"] = [found[0][0] for found in every_agent.values()]
        for column, name in enumerate(further, 1):
            by_agent = [found[0][column] for found in every_agent.values()]
            record[f"heldout/{name}_by_agent"] = by_agent
        record["messages"], record["bytes"] = (int(total) for total in sums[5])
        places = {i: found[1] for i, found in every_agent.items() if found[1]}
        waited = [(i, *wait) for i, place in places.items() for wait in place["waits"]]
        record["system"] = self._system(sums[6], waited)
        record["system"] |= pace(sums[7], record["system"]["elapsed_seconds"])
        record["system"]["parts"] = spread([place["parts"] for place in places.values()])
        record["system"]["peak_memory_bytes"] = max(place["memory"] for place in places.values())
        if self._events:
            record["system"]["events"], self._events = self._events, []
        return record

    def _missed(self, run: Run) -> dict[int, np.ndarray]:
        """Return what mixing has missed of every local agent, (3,) or nothing."""
        ids = [agent.id for agent in run.agents]
        if self._interference is None:
            return dict.fromkeys(ids, np.zeros(3))
        return self._interference.take(ids)

    def _timed(self, run: Run, measuring: float) -> dict[str, float]:
        """Return this process's seconds in each part of the rounds since the last record.

        measuring : seconds of the record that is being made.
        """
        fresh = run.parts.since(self._parts, measure=measuring)
        self._parts = {part: self._parts.get(part, 0.0) + new for part, new in fresh.items()}
        return fresh

    def _traffic(self, run: Run, done: int) -> tuple[int, int]:
        """Return the messages and bytes that the local agents have sent in ``done`` rounds."""
        if self._sent is None:
            agents = run.world.local_agents
            if run.world.is_root and run.recovery is not None:
                agents = (*agents, *run.recovery.absent(run))
            self._sent = Sent(run.exchange, run.schedule, agents)
        return self._sent.until(done)

    def _spent(self, run: Run) -> np.ndarray:
        """Return this process's seconds computed, traffic and seconds waited since the last record.

        After these come the messages that were 0, 1, ... rounds old, where they may be late.
        """
        seen = np.zeros(len(COUNTED))
        if run.exchange is not None:
            counters = run.exchange.counters
            counted = (getattr(counters, name) for name in COUNTED)
            seen = np.array([*counted, *counters.ages], dtype=np.float64)
        fresh = seen - self._seen if self._seen.size == seen.size else seen
        self._seen = seen
        computed, self._computed = self._computed, 0.0
        return np.insert(fresh, 0, computed)

    def _worked(self, run: Run) -> np.ndarray:
        """Return what this process did since the last record, and the seconds it measured for.

        (6,): pairs, logical and physical tokens, operations, those it could have done in the time
        that it computed (0 where that is unknown), seconds.
        """
        work, self._work = self._work, Work()
        possible = could(run, work, self._computed)
        measured, self._measured = self._measured, 0.0
        return np.array((work.pairs, work.logical, work.physical, work.flops, possible, measured))

    def _waited(self, run: Run) -> dict[int, float]:
        """Return the seconds this process waited for each remote agent since the last record."""
        seen = {} if run.exchange is None else dict(run.exchange.counters.wait_by_neighbour)
        fresh = {i: seconds - self._waits.get(i, 0.0) for i, seconds in seen.items()}
        self._waits = seen
        return fresh

    def _system(self, total: np.ndarray, waits: list[tuple[int, int, float]]) -> dict[str, Any]:
        """Return the traffic and times of all processes as a record.

        waits : the first agent of a process, an agent it waited for, and the seconds.
        """
        now = perf_counter()
        took, self._clock = now - self._clock, now
        record: dict[str, Any] = {
            "messages_between_processes": int(total[1]),
            "bytes_between_processes": int(total[2]),
            "messages_between_nodes": int(total[3]),
            "bytes_between_nodes": int(total[4]),
            "wait_seconds": round(float(total[5]), 6),
            "compute_seconds": round(float(total[0]), 6),
            "elapsed_seconds": round(took, 6),
        }
        if waits:
            waits.sort(key=lambda wait: -wait[2])
            record["longest_wait_agent"] = int(waits[0][1])
            record["longest_wait_seconds"] = round(float(waits[0][2]), 6)
            record["waits"] = [[i, j, round(seconds, 4)] for i, j, seconds in waits[:MOST_WAITS]]
        if total.size > 6:
            record["ages"] = [int(count) for count in total[6:]]
        return record
