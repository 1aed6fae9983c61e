"""Letters that are late: by a seeded schedule, or as a recorded run has heard them.

Agent i mixes in round t what its neighbour j said in round t - d_ij(t), 0 <= d_ij(t) <= q, and no
earlier than round 0. With ``Inbox.displace``

    x_i <- x_i + sum_j w_ij (m_j(t - d_ij(t)) - m_i(t)),

our reading of bounded staleness: the agent's own share is always of today. An agent that is heard
with different delays is counted by some and not by others, so that the sum over all agents is not
preserved even if the weights are doubly stochastic; the mean model drifts by the differences
between old and new. Hence only algorithms that carry no conserved sums can be late.

Staleness enters Jiang, "Distributed Direct Preference Optimization", 2026, by Theorem 5.5, among
those on FedDPO; that letters of gossip are late is ours.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import torch
from msgspec import Meta
from torch import Tensor

from decdpo.comm.world import Counters, Exchange, Trace
from decdpo.errors import DataError
from decdpo.files import checked, parse_json, read_text, reason
from decdpo.messages import Inbox, Letter
from decdpo.rng import Stream, generator
from decdpo.topology.row import Row


class Delays(Protocol):
    """Says how old letters are."""

    def ages(self, agent: int, round: int, sources: Sequence[int]) -> Sequence[int]:
        """Return d_ij(t) of ``agent`` in ``round``, one for each of its ``sources``."""
        ...


class SeededDelays:
    """Delays uniform on 0 ... ``max_age``, a function of seed, agent and round; or always the most.

    fixed : every letter is ``max_age`` rounds old.
    """

    def __init__(self, seed: int, max_age: int, *, fixed: bool = False) -> None:
        self.seed = seed
        self.max_age = max_age
        self.fixed = fixed

    def ages(self, agent: int, round: int, sources: Sequence[int]) -> list[int]:
        """Return d_ij(t) for each source, before the run's beginning cuts it."""
        if self.fixed:
            return [self.max_age] * len(sources)
        rng = generator(self.seed, Stream.DELAY, agent, round)
        return [int(d) for d in rng.integers(0, self.max_age + 1, len(sources))]


class RecordedDelays:
    """The ages that ``AgeLog`` wrote of a run in ``folder``, to be heard again.

    max_age : the oldest that can be replayed. Raises ``DataError`` if an age is not recorded.
    """

    def __init__(self, folder: Path, agents: Sequence[int], max_age: int) -> None:
        self.max_age = max_age
        self._ages = {agent: read_ages(age_file(folder, agent)) for agent in agents}
        self._folder = folder

    def ages(self, agent: int, round: int, sources: Sequence[int]) -> list[int]:
        """Return the recorded ages of the sources."""
        found = self._ages[agent].get(round)
        if found is None or len(found) != len(sources):
            raise DataError(
                f"{age_file(self._folder, agent)} has no ages of {len(sources)} letters in round "
                f"{round}",
                "replay with the topology and at most the rounds of the recorded run",
            )
        if found and max(found) > self.max_age:
            raise DataError(
                f"in round {round} agent {agent} heard a letter {max(found)} rounds old, but "
                f"staleness.max_age = {self.max_age}",
                f"set staleness.max_age = {max(found)} or more",
            )
        return found


class StaleExchange:
    """An exchange that keeps what it has heard and hands out old letters, as ``delays`` says.

    inner : brings the letters of every round, all of them. Letters of the last q + 1 rounds are
    kept once for each source that this process hears. max_age : q.
    """

    def __init__(self, inner: Exchange, delays: Delays, max_age: int) -> None:
        self._inner = inner
        self._delays = delays
        self._depth = max_age + 1
        self._rows: dict[int, Row] = {}
        self._kept: dict[int, list[Tensor]] = {}
        self._newest: dict[int, int] = {}
        inner.counters.ages = [0] * self._depth
        self.counters: Counters = inner.counters

    @property
    def message_bytes(self) -> int:
        """Bytes of one message of the exchange within."""
        return self._inner.message_bytes

    @property
    def transport(self) -> str:
        """How messages travel."""
        return self._inner.transport

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user would want otherwise of that."""
        return self._inner.doubts

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends in a round with this ``row``."""
        return self._inner.sends(agent, row)

    @property
    def trace(self) -> Trace | None:
        """Called after every span of the exchange within."""
        return self._inner.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._inner.trace = trace

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Send ``message`` (M,)."""
        self._rows[agent] = row
        self._inner.start(agent, round, row, message)

    def finish(self, agent: int, round: int) -> Inbox:
        """Return letters of ``round`` and earlier ones; waits for those of ``round`` all the same.

        A letter's body stays as it is until the next round finishes.
        """
        heard = self._inner.finish(agent, round)
        self._keep(heard, round)
        ages = self._delays.ages(agent, round, self._rows[agent].sources)
        letters = []
        for letter, wanted in zip(heard.letters, ages, strict=True):
            age = min(wanted, round)
            self.counters.ages[age] += 1
            body = self._kept[letter.source][(round - age) % self._depth]
            letters.append(Letter(letter.source, letter.weight, age, body))
        return Inbox(heard.sent, tuple(letters), own=heard.own)

    def recall(self, rows: Mapping[int, Row], told: Mapping[int, Mapping[int, Tensor]]) -> None:
        """Hear again what local agents said before the run was resumed. Collective.

        rows : by agent. told : messages (M,) by agent and round, the last q rounds of all agents.
        """
        for t in sorted({t for messages in told.values() for t in messages}):
            for agent, messages in told.items():
                self._inner.start(agent, t, rows[agent], messages[t])
            for agent in told:
                self._keep(self._inner.finish(agent, t), t)

    def close(self) -> None:
        """Free the exchange within. Collective."""
        self._inner.close()
        self._kept.clear()

    def _keep(self, heard: Inbox, round: int) -> None:
        """Copy the letters of ``round`` that have not been copied yet."""
        heard.settle()
        for letter in heard.letters:
            source = letter.source
            if self._newest.get(source) != round:
                self._newest[source] = round
                if source not in self._kept:
                    self._kept[source] = [torch.empty_like(letter.body) for _ in range(self._depth)]
                self._kept[source][round % self._depth].copy_(letter.body)


class AgeLog:
    """An exchange that writes down how old every letter was, one file per local agent.

    folder : of the files. Lines follow what is there already, in rounds counted from 1 as in the
    metrics.
    """

    def __init__(self, inner: Exchange, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._inner = inner
        self._folder = folder
        self.counters = inner.counters

    @property
    def message_bytes(self) -> int:
        """Bytes of one message of the exchange within."""
        return self._inner.message_bytes

    @property
    def transport(self) -> str:
        """How messages travel."""
        return self._inner.transport

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user would want otherwise of that."""
        return self._inner.doubts

    def sends(self, agent: int, row: Row) -> int:
        """Return how many messages ``agent`` sends in a round with this ``row``."""
        return self._inner.sends(agent, row)

    @property
    def trace(self) -> Trace | None:
        """Called after every span of the exchange within."""
        return self._inner.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._inner.trace = trace

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Send ``message`` (M,)."""
        self._inner.start(agent, round, row, message)

    def finish(self, agent: int, round: int) -> Inbox:
        """Return what ``agent`` hears, and write down the ages."""
        inbox = self._inner.finish(agent, round)
        ages = [letter.age for letter in inbox.letters]
        with age_file(self._folder, agent).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": round + 1, "ages": ages}) + "\n")
        return inbox

    def close(self) -> None:
        """Free the exchange within. Collective."""
        self._inner.close()


@dataclass(frozen=True)
class AgesOfRound:
    """One line of a record. round : counted from 1. ages : of the messages, in rounds."""

    round: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    ages: tuple[Annotated[int, Meta(ge=0, le=2**63 - 1)], ...]


def age_file(folder: Path, agent: int) -> Path:
    """Return where the ages of an agent's letters are written."""
    return folder / f"agent_{agent:06d}.jsonl"


def record_digest(folder: Path, num_agents: int) -> str:
    """Return the SHA-256 of the recorded ages of all agents.

    Raises ``DataError`` if a file is missing or something else.
    """
    ages = [read_ages(age_file(folder, agent)) for agent in range(num_agents)]
    return hashlib.sha256(json.dumps(ages).encode()).hexdigest()


def read_ages(path: Path) -> dict[int, list[int]]:
    """Return the ages in a file of ``AgeLog``, by round counted from 0.

    Raises ``DataError`` if it is missing or something else.
    """
    try:
        lines = read_text(path).splitlines()
        records = [checked(parse_json(line), AgesOfRound) for line in lines]
        late = next((r for r in records if max(r.ages, default=0) >= r.round), None)
        if late is None:
            return {record.round - 1: list(record.ages) for record in records}
        why = f"in round {late.round} a message is {max(late.ages)} rounds old"
    except OSError as fault:
        why = reason(fault)
    except ValueError as fault:
        why = f"it is not a record of ages: {fault}"
    raise DataError(
        f"cannot read {path}: {why}",
        "name the folder of a run with staleness.kind = 'arrival' as staleness.run",
    )
