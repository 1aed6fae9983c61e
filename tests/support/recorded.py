"""The ages of messages that were late by arrival, kept by a test to replay them."""

from typing import Any


class Recorded:
    """The ages of a run, by agent and round."""

    def __init__(self, ages: dict[int, list[list[int]]]) -> None:
        self._ages = ages

    def ages(self, agent: int, round: int, sources: Any) -> list[int]:
        return self._ages[agent][round]
