"""How old messages are when they are mixed: by a seeded schedule, or as a run has recorded it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from msgspec import Meta

from decdpo.errors import DataError
from decdpo.files import checked, parse_json, read_text, reason
from decdpo.rng import Stream, generator


class Delays(Protocol):
    """Says how old messages are."""

    def ages(self, agent: int, round: int, sources: Sequence[int]) -> Sequence[int]:
        """Return d_ij(t) of ``agent`` in ``round``, one for each of its ``sources``."""
        ...


class SeededDelays:
    """Delays uniform on 0 ... ``max_age``, a function of seed, agent and round; or always the most.

    fixed : every message is ``max_age`` rounds old.
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
    """The ages that ``AgeLog`` wrote of a run in ``folder``, to be replayed.

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
                f"{age_file(self._folder, agent)} has no ages of {len(sources)} messages in round "
                f"{round}",
                "replay with the topology and at most the rounds of the recorded run",
            )
        if found and max(found) > self.max_age:
            raise DataError(
                f"in round {round} agent {agent} received a message {max(found)} rounds old, but "
                f"staleness.max_age = {self.max_age}",
                f"set staleness.max_age = {max(found)} or more",
            )
        return found


@dataclass(frozen=True)
class AgesOfRound:
    """One line of a record. round : counted from 1. ages : of the messages, in rounds."""

    round: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    ages: tuple[Annotated[int, Meta(ge=0, le=2**63 - 1)], ...]


def age_file(folder: Path, agent: int) -> Path:
    """Return where the ages of an agent's messages are written."""
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
