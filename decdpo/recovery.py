"""What those that are left do when agents are lost: the same on every process.

A loss is known to all at once: by the agreement on a round, or by another step that all take. If a
round has begun, its local steps stand and its messages have left; the agents that are left get new
rows among themselves, send on the edges that are new, and mix the round once all agree that every
message of it is here. Otherwise the next round begins among them. Algorithms with conserved sums
rebuild them after that round is mixed (``Needs.on_loss``). What happened is the run's history, from
which ``decdpo replay`` makes the same bits in one process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from time import perf_counter
from typing import Any, Protocol

from torch import Tensor

from decdpo.algorithms.base import Algorithm
from decdpo.comm.history import Change, History
from decdpo.comm.world import World
from decdpo.metrics.evaluation import average_model
from decdpo.run import Agent, Run, Schedule
from decdpo.topology.living import Left, left_of
from decdpo.topology.row import Mixing, Row


class Adopt(Protocol):
    """Makes lost agents again. made : those of this process."""

    @property
    def made(self) -> Mapping[int, Agent]: ...

    def __call__(self, run: Run, absent: Sequence[int], t: int) -> dict[int, tuple[int, int]]:
        """Return for each adopted agent its process, and the round that it begins from or ``MEAN``.

        Collective; the same on every process.
        """
        ...


class Historic:
    """The schedule of a run that has lost agents: in every round, of those that took part in it."""

    def __init__(self, base: Schedule, history: History) -> None:
        self.base = base
        self.digest = base.digest
        self._history = history
        self._left: dict[tuple[int, ...], Any] = {}

    def mixing(self, round: int) -> Mixing:
        """Return the mixing weights of ``round``."""
        return self.of(self._history.members(round)).mixing(round)

    @property
    def rho(self) -> float | None:
        """Factor by which a round contracts disagreement now."""
        return self.of(self._history.now).rho

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed to keep the agents together now, in words."""
        now = self.of(self._history.now)
        return now.notes if isinstance(now, Left) else ()

    def of(self, agents: tuple[int, ...]) -> Any:
        """Return the schedule of ``agents``."""
        if agents == self._history.everybody:
            return self.base
        found = self._left.get(agents)
        if found is None:
            found = self._left[agents] = left_of(self.base, agents)
        return found


class Recovery:
    """Accounts for lost agents in a run.

    base : the schedule of all agents. history : of the run so far; grows. note : is called on every
    process with each event, and whether this process writes for all. say : prints a line. adopt :
    makes lost agents again; None lets them go.
    """

    def __init__(
        self,
        base: Schedule,
        history: History,
        *,
        note: Callable[[dict[str, Any], bool], object],
        say: Callable[[str], object],
        adopt: Adopt | None = None,
    ) -> None:
        self.history = history
        self.full = base
        self._adopt = adopt
        self._adopted: dict[int, tuple[int, int]] = {}
        self._note = note
        self._say = say
        self._lost: list[int] = []
        self._nobody = False
        self._began = 0.0

    def schedule(self) -> Schedule:
        """Return the schedule of the run as it has come about."""
        return Historic(self.full, self.history) if self.history.changes else self.full

    def between(self, run: Run, t: int) -> None:
        """Let round ``t`` begin among those that are left. Collective."""
        self._began = perf_counter()
        changed = self._account(run, t, midway=False)
        if self._adopt is not None and self.absent(run):
            changed |= self._take_over(run, t, self._adopt)
        if changed:
            if run.exchange is not None:
                run.exchange.rewire(run.world.members, {})
            self._finish(run, t)

    def redo(self, run: Run, t: int) -> None:
        """Give the round that has begun its new rows, for it to be collected again."""
        if not self._lost:
            self._began = perf_counter()
        self._account(run, t, midway=True)
        assert run.exchange is not None
        rows = {a.id: self._row_again(run, t, a.id) for a in run.agents}
        self._nobody = run.algorithm.needs.meets == "server" and not rows[run.agents[0].id].sources
        run.exchange.rewire(run.world.members, rows)

    def _row_again(self, run: Run, t: int, agent: int) -> Row:
        """Return the row of ``agent`` in round ``t``, which has begun.

        With a server they are the participants drawn before, as far as they are left, for the
        others took no steps.
        """
        if run.algorithm.needs.meets != "server":
            return run.schedule.mixing(t).row(agent)
        began = self.history.until_began(t)
        row = Historic(self.full, began).mixing(t).row(agent)
        left = run.world.members.home
        pairs = [(j, w) for j, w in zip(row.sources, row.weights) if j in left]
        total = sum(w for _, w in pairs)
        weights = tuple(w / total for _, w in pairs)
        return replace(row, sources=tuple(j for j, _ in pairs), weights=weights)

    def absent(self, run: Run) -> tuple[int, ...]:
        """Return the agents that took part and do not any more, ascending."""
        return tuple(sorted(set(self.history.everybody) - set(run.world.members.agents)))

    def mixes(self, run: Run) -> bool:
        """Say whether the round in which agents were lost is mixed.

        Not where the weights must stay the same: sums under the old ones mean nothing now. Nor if
        all participants are lost: then all that are left hold the model of the round before.
        """
        if self._nobody:
            return False
        return not (self._lost and run.algorithm.needs.fixed_weights)

    def after(self, run: Run, t: int) -> None:
        """Rebuild conserved sums if agents were lost in round ``t``, which is mixed. Collective."""
        if self._lost:
            self._finish(run, t + 1)

    def _account(self, run: Run, t: int, *, midway: bool) -> bool:
        """Take note of who is lost; say whether anybody is."""
        members = run.world.members
        lost = tuple(sorted(set(self.history.now) - set(members.agents)))
        if not lost:
            return False
        self.history.changes.append(Change(t, midway, lost))
        self._lost += lost
        run.schedule = self.schedule()
        run.agents[:] = [a for a in run.agents if a.id in members.home]
        return True

    def _take_over(self, run: Run, t: int, adopt: Adopt) -> bool:
        """Let lost agents take part again from round ``t`` on; say whether any change. Collective.
        """
        found = adopt(run, self.absent(run), t)
        # Who shall take over may have been lost meanwhile, to all alike.
        changed = self._account(run, t, midway=False)
        ranks = run.world.members.ranks
        self._adopted = {a: (rank, begun) for a, (rank, begun) in found.items() if rank in ranks}
        if not self._adopted:
            return changed
        joined = {str(agent): begun for agent, (_, begun) in sorted(self._adopted.items())}
        self.history.changes.append(Change(t, False, (), joined))
        run.schedule = self.schedule()
        world: Any = run.world
        world.adopt({agent: rank for agent, (rank, _) in self._adopted.items()})
        run.agents += [adopt.made[agent] for agent in self._adopted if agent in adopt.made]
        run.agents.sort(key=lambda agent: agent.id)
        return True

    def _finish(self, run: Run, rounds: int) -> None:
        """Let the algorithm restart where it must, and say what has happened. Collective."""
        if run.algorithm.needs.on_loss == "restarts":
            restart(run.world, run.algorithm, run.agents, rounds)
        event = self._event(run, perf_counter() - self._began)
        self._lost.clear()
        self._adopted, self._nobody = {}, False
        self._note(event, run.world.is_root)
        run.monitor.changed(event, run)
        if run.world.is_root:
            self._say(words(event))

    def _event(self, run: Run, seconds: float) -> dict[str, Any]:
        change = self.history.changes[-1]
        schedule = run.schedule
        notes = schedule.notes if isinstance(schedule, Historic) else ()
        return {
            "round": change.round + 1,
            "midway": change.midway,
            "lost": sorted(self._lost),
            "adopted": {
                str(agent): {"process": rank, "begun": begun}
                for agent, (rank, begun) in sorted(self._adopted.items())
            },
            "agents": len(self.history.now),
            **moment(schedule),
            "recovery_ms": round(1e3 * seconds, 3),
            "notes": list(notes),
        }


def moment(schedule: Schedule) -> dict[str, Any]:
    """Return what every event has: when it was, and the spectral gap of the graph that it left."""
    rho = schedule.rho
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "gap": None if rho is None else 1.0 - rho,
    }


def restart(world: World, algorithm: Algorithm[Any], agents: list[Agent], rounds: int) -> None:
    """Let all agents begin their conserved sums anew after ``rounds`` rounds. Collective.

    agents : those of this process.
    """
    mean: Tensor | None = None
    if algorithm.needs.fixed_weights:
        mean = average_model(world, agents).shared
    for agent in agents:
        algorithm.restart(agent.state, rounds, mean)


def words(event: Mapping[str, Any]) -> str:
    """Return one line that says what an event is."""
    lost = listed(event["lost"])
    gap = "" if event["gap"] is None else f", spectral gap {event['gap']:.3g}"
    notes = "".join(f"; the graph: {note}" for note in event["notes"])
    when = "in" if event["midway"] else "before"
    what = f"lost {when} round {event['round']}: {lost}" if event["lost"] else ""
    if event["adopted"]:
        taken = listed(list(event["adopted"]))
        what += ("; " if what else "") + f"adopted before round {event['round']}: {taken}"
    return f"{what}; {event['agents']} go on after {event['recovery_ms']:.1f} ms{gap}{notes}"


def listed(agents: Sequence[Any]) -> str:
    """Return "agents 2, 5", or "agent 2"."""
    return f"agent{'s' * (len(agents) > 1)} " + ", ".join(map(str, agents))
