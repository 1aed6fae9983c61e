"""Where the time of a process goes: seconds summed by part of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PARTS = ("compute", "post", "wait", "mix", "measure", "checkpoint")
"""The parts of a round: local steps; messages sent on their way; waiting for those of others;
mixing them; measuring; saving, as far as the round waits for it."""

MOST_WAITS = 32
"""Longest waits of one process for one agent that a record names."""


def _none() -> dict[str, float]:
    return dict.fromkeys(PARTS, 0.0)


@dataclass
class Parts:
    """The seconds that this process has spent in each part since it began to train."""

    seconds: dict[str, float] = field(default_factory=_none)

    def add(self, part: str, seconds: float) -> None:
        """Add ``seconds`` to a part."""
        self.seconds[part] += seconds

    def since(self, seen: Mapping[str, float], **ahead: float) -> dict[str, float]:
        """Return the seconds of every part less those ``seen``.

        ahead : seconds of parts that have begun and are not added yet.
        """
        return {
            part: total + ahead.get(part, 0.0) - seen.get(part, 0.0)
            for part, total in self.seconds.items()
        }


def spread(of_process: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the least, mean and most seconds of each part over processes."""
    found = {}
    for part in PARTS:
        values = [seconds[part] for seconds in of_process]
        three = (min(values), sum(values) / len(values), max(values))
        found[part] = [round(value, 6) for value in three]
    return found


def pace(total: np.ndarray, seconds: float) -> dict[str, Any]:
    """Return how fast all processes together were for ``seconds``, measuring included.

    total : the sum of what ``Metrics._worked`` returns. Tokens a second are logical ones: each
    answer with its prompt. mfu : the share that a step's operations, on the tokens that go through
    the model, are of what the GPUs could do while they computed; only where that is known.
    """
    pairs, logical, _, flops, could, measured = total.tolist()
    found: dict[str, Any] = {"measuring_seconds": round(measured, 6)}
    if pairs and seconds > 0:
        found["pairs_per_second"] = round(pairs / seconds, 3)
        if logical:
            found["tokens_per_second"] = round(logical / seconds, 1)
    if could:
        found["mfu"] = round(flops / could, 4)
    return found


def longest(waits: Mapping[int, float]) -> list[tuple[int, float]]:
    """Return the agents waited for longest and the seconds, those of a microsecond or more."""
    found = [(agent, seconds) for agent, seconds in waits.items() if seconds >= 1e-6]
    return sorted(found, key=lambda pair: -pair[1])[:MOST_WAITS]
