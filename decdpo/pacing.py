"""How many local steps each agent takes in a round: given, measured, or as in a recorded run.

With measured pace the agents of a process take steps in proportion to how many it has time for.
Let s be the seconds that a process needs for one local step of each of its agents, over the rounds
since the last decision. Every so many rounds all processes agree on

    E_i = E median_j(s_j) / s_i    rounded, from 1 to the most allowed,

the median over all agents, so that the agents of a middling machine keep E and all are done at
about the same time. Every decision is written to a record before it is used. A resumed run takes
the decisions that are recorded there, also those of rounds that it has to train again, and measures
only after them; a run with ``pace.kind = "replay"`` takes them all, in one process or many. So the
record and the seed together give the bits.
"""

import hashlib
import json
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from decdpo.algorithms.wrappers.own_pace import OwnPace
from decdpo.comm.world import World
from decdpo.errors import DataError, DecdpoError
from decdpo.records import Writer, keep_until, read_records
from decdpo.run import Run

RECORD = "pace.jsonl"
"""File of a run with the decisions."""


class Timetable:
    """Local steps of every agent from round to round. usual : those of an agent it does not name.

    It begins at round 0, and changes by ``add``.
    """

    def __init__(self, usual: int) -> None:
        self.usual = usual
        self._rounds: list[int] = []
        self._steps: list[Mapping[int, int]] = []
        self._done: list[dict[int, int]] = []

    @property
    def entries(self) -> list[tuple[int, Mapping[int, int]]]:
        """The rounds from which steps hold, each with the steps by agent, ascending."""
        return list(zip(self._rounds, self._steps, strict=True))

    @property
    def last(self) -> int:
        """The round from which the newest entry holds, -1 without one."""
        return self._rounds[-1] if self._rounds else -1

    def add(self, round: int, steps: Mapping[int, int]) -> None:
        """Let ``steps`` by agent hold from ``round`` on, which is after all earlier ones."""
        known = {*steps, *(self._done[-1] if self._done else ())}
        done = {agent: self._taken(agent, round) for agent in known}
        self._rounds.append(round)
        self._steps.append(dict(steps))
        self._done.append(done)

    def count(self, agent: int, round: int) -> int:
        """Return E_i of ``agent`` in ``round``."""
        k = bisect_right(self._rounds, round) - 1
        return self._steps[k].get(agent, self.usual) if k >= 0 else self.usual

    def steps(self, agent: int, round: int) -> range:
        """Return the numbers of the local steps of ``agent`` in ``round``, counted from round 0."""
        first = self._taken(agent, round)
        return range(first, first + self.count(agent, round))

    def _taken(self, agent: int, round: int) -> int:
        """Return how many local steps ``agent`` has taken before ``round``."""
        k = bisect_right(self._rounds, round) - 1
        if k < 0:
            return round * self.usual
        since = self._rounds[k]
        done = self._done[k].get(agent, since * self.usual)
        return done + (round - since) * self._steps[k].get(agent, self.usual)


class Paced:
    """Agents that follow a timetable.

    algorithm : of the agents. pairs : what agents count as in the mean that is kept, (n,): their
    training pairs, or all 1.
    """

    def __init__(self, timetable: Timetable, algorithm: OwnPace, pairs: Sequence[int]) -> None:
        self._timetable = timetable
        self._algorithm = algorithm
        self._pairs = pairs

    def steps(self, agent: int, round: int) -> range:
        """Return the numbers of the local steps that ``agent`` takes in ``round``."""
        return self._timetable.steps(agent, round)

    def begin(self, run: Run, round: int) -> None:
        """Let ``round`` begin for the local agents. Collective where the pace is measured."""
        counts = [self._timetable.count(agent, round) for agent in range(len(self._pairs))]
        # In whole numbers, so that equal steps give a scale of exactly 1.
        total = sum(weight * count for weight, count in zip(self._pairs, counts, strict=True))
        for agent in run.agents:
            own = counts[agent.id]
            self._algorithm.begin(agent.state, own, total / (sum(self._pairs) * own))

    def took(self, run: Run, round: int, seconds: float) -> None:
        """Take note that the local steps of ``round`` took this process ``seconds``."""


class Measured(Paced):
    """Agents whose timetable is made while they train.

    path : of the record. every : rounds between two decisions. most : local steps of a round that
    an agent may take.
    """

    def __init__(
        self,
        timetable: Timetable,
        algorithm: OwnPace,
        pairs: Sequence[int],
        *,
        path: Path,
        every: int,
        most: int,
    ) -> None:
        super().__init__(timetable, algorithm, pairs)
        self._path = path
        self._every = every
        self._most = most
        self._seconds = 0.0
        self._work = 0

    def begin(self, run: Run, round: int) -> None:
        """Decide if a decision is due that no record holds, then let ``round`` begin. Collective.

        Nothing is decided by no measurement: the first rounds are of E local steps.
        """
        if round % self._every == 0 and round > self._timetable.last:
            self._decide(run, round)
        super().begin(run, round)

    def took(self, run: Run, round: int, seconds: float) -> None:
        """Add the ``seconds`` of a round to what the next decision is made by."""
        self._seconds += seconds
        self._work += sum(len(self.steps(agent.id, round)) for agent in run.agents)

    def _decide(self, run: Run, round: int) -> None:
        """Agree on the local steps from ``round`` on, and write them down. Collective."""
        mine = len(run.agents) * self._seconds / self._work if self._work else 0.0
        seconds = run.world.collect(dict.fromkeys((a.id for a in run.agents), mine))
        table = self._timetable
        if all(seconds.values()):
            steps = chosen(seconds, table.usual, self._most)
        else:
            steps = {agent: table.count(agent, round) for agent in seconds}
        table.add(round, steps)
        self._seconds, self._work = 0.0, 0
        if run.world.is_root:
            writer = Writer(self._path)
            kept = {str(agent): value for agent, value in seconds.items()}
            named = {str(agent): count for agent, count in steps.items()}
            writer.write({"round": round + 1, "seconds": kept, "steps": named})
            writer.sync()
            writer.close()


def chosen(seconds: Mapping[int, float], usual: int, most: int) -> dict[int, int]:
    """Return E_i by agent, from the seconds that a step of each takes.

    usual : E of an agent of middling pace. most : of any agent.
    """
    middle = median(seconds.values())
    return {
        agent: max(1, min(most, round(usual * middle / own))) for agent, own in seconds.items()
    }


def read_timetable(path: Path, usual: int) -> Timetable:
    """Return the timetable that a run has recorded; an empty one if there is no file.

    Raises ``DataError`` if it is something else.
    """
    table = Timetable(usual)
    for record in read_records(path) if path.exists() else ():
        try:
            steps = {int(agent): int(count) for agent, count in record["steps"].items()}
            if min(steps.values()) < 1 or min(steps) < 0:
                raise ValueError
        except (KeyError, ValueError, TypeError, AttributeError):
            raise DataError(
                f"{path}: the line of round {record['round']} does not say how many local steps "
                "each agent takes",
                "restore the file: this is not what a run writes",
            ) from None
        table.add(record["round"] - 1, steps)
    return table


def shared_timetable(
    world: World, path: Path, usual: int, every: int, next_round: int
) -> Timetable:
    """Return the timetable recorded at ``path`` on every process, as one of them reads it.

    The record of a run that begins anew is removed. Raises ``DataError`` on all processes if a
    decision of the rounds before ``next_round`` is missing, which come ``every`` so many rounds.
    Collective.
    """
    table, fault = Timetable(usual), None
    if world.is_root:
        try:
            table = _resumed(path, usual, every, next_round)
        except DecdpoError as error:
            fault = error
    world.require(fault)
    ids = world.local_agents
    mine = [[round, dict(steps)] for round, steps in table.entries] if world.is_root else None
    found = world.collect({i: mine if i == ids[0] else None for i in ids})
    shared = Timetable(usual)
    for round, steps in next((part for part in found.values() if part is not None), ()):
        shared.add(round, {int(agent): count for agent, count in steps.items()})
    return shared


def _resumed(path: Path, usual: int, every: int, next_round: int) -> Timetable:
    """Return the timetable of a run that goes on after ``next_round`` rounds."""
    if next_round == 0:
        path.unlink(missing_ok=True)
        return Timetable(usual)
    # Of whatever round they are: a torn last line alone is dropped.
    keep_until(path, sys.maxsize)
    table = read_timetable(path, usual)
    due = range(0, next_round, every)
    held = {round for round, _ in table.entries}
    missing = next((round for round in due if round not in held), None)
    if missing is not None:
        raise DataError(
            f"{path} does not say how many local steps were taken from round {missing + 1} on",
            "restore the file: without it nobody knows which pairs come next",
        )
    return table


def record_digest(path: Path) -> str:
    """Return the SHA-256 of the recorded decisions. Raises ``DataError`` if there are none."""
    if not path.exists():
        raise DataError(
            f"there is no {path}",
            "name the folder of a run with pace.kind = 'measured' as pace.run",
        )
    steps = [[record["round"], record.get("steps")] for record in read_records(path)]
    return hashlib.sha256(json.dumps(steps).encode()).hexdigest()
