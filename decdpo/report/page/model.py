"""What the page of a run is made of: plain values, gathered by ``decdpo.session.shown``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from decdpo.report.compare import RunFacts


@dataclass(frozen=True)
class Event:
    """What befell a run after ``round`` rounds. kind : "restart", "lost", "adopted", "joined".

    agents : those that were lost or have come.
    """

    round: int
    kind: str
    text: str
    agents: tuple[int, ...] = ()

    @property
    def sign(self) -> str:
        """What marks it above a chart: the first character of its kind, as a capital."""
        return self.kind[:1].upper()


@dataclass(frozen=True)
class Links:
    """Who sends to whom, over the rounds that were looked at.

    graph : its name, which says where agents are drawn. agents : n. pairs : (source, target) with
    the share of rounds in which there was a message. message_bytes : of one message. rounds : done.
    """

    graph: str
    agents: int
    pairs: Mapping[tuple[int, int], float]
    message_bytes: float
    rounds: int


@dataclass(frozen=True)
class Shown:
    """One run as the page shows it.

    name : unlike those of the other runs. state : of ``decdpo status``, in words. rounds : wanted.
    config : the effective configuration by section.key. toml : the same as text. record : all that
    run.json holds. events : ascending. links : None where there is no graph, and ``no_links`` says
    why. aligned, independent : the predicted consensus distance at every record, empty where
    ``no_prediction`` says why. digest : SHA-256 of the lines of ``decdpo checkpoint digest``, of
    round ``saved``, or what is in its place. agent_names : by id, empty if unknown.
    """

    name: str
    facts: RunFacts
    state: str
    rounds: int
    config: Mapping[str, Any]
    toml: str
    record: Mapping[str, Any]
    events: Sequence[Event] = ()
    links: Links | None = None
    no_links: str = ""
    aligned: Sequence[float] = ()
    independent: Sequence[float] = ()
    no_prediction: str = ""
    digest: str = ""
    agent_digests: Sequence[str] = ()
    saved: int | None = None
    agent_names: Sequence[str] = field(default=())

    @cached_property
    def agents(self) -> int:
        """The agents that took part when there were most of them."""
        return max(len(record["heldout/accuracy_by_agent"]) for record in self.records)

    def left(self, record: Mapping[str, Any]) -> list[int]:
        """Return the agents that a record has a value of, in its order."""
        count, lost = len(record["heldout/accuracy_by_agent"]), set[int]()
        for event in self.events:
            if event.round <= record["round"]:
                lost = lost.union(event.agents) if event.kind == "lost" else lost - {*event.agents}
        left = [i for i in range(self.agents) if i not in lost]
        return left if len(left) == count else list(range(count))

    @property
    def records(self) -> Sequence[dict[str, Any]]:
        """Its records, ascending."""
        return self.facts.records
