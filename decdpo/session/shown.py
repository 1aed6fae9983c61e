"""What the page of a run shows: its files read and put together."""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decdpo import build
from decdpo.build.learning import make_learning_rate
from decdpo.checkpoint.format import Manifest
from decdpo.checkpoint.inspect import digests, locate
from decdpo.config import Config
from decdpo.config.schema import Sgd
from decdpo.errors import DecdpoError
from decdpo.files import os_fault
from decdpo.report.compare import RunFacts
from decdpo.report.page.model import Event, Links, Shown
from decdpo.report.page.tables import flat
from decdpo.session.record import read_record
from decdpo.session.status import run_status
from decdpo.theory.consensus import Prediction, predict
from decdpo.topology.names import TIME_VARYING
from decdpo.topology.row import Schedule

MOST_DIGESTED = 256 << 20
"""Bytes of a checkpoint whose digests are worked out for the page."""

MOST_LISTED = 64
"""Agents whose digests are listed."""

CHANGES = ("lost", "adopted", "joined")
"""Keys of an event in run.json that list agents."""

LOOKED_AT = 64
"""Rounds of a graph that changes of which the links are drawn."""


def shown(name: str, facts: RunFacts, config: Config) -> Shown:
    """Return the run of ``facts`` as a page shows it. name : unlike those of other runs.

    Raises ``DataError`` if its run.json is damaged.
    """
    out = facts.folder
    _, record = read_record(out)
    toml = config.to_toml()
    agents = max(len(r["heldout/accuracy_by_agent"]) for r in facts.records)
    links, no_links = _links(config, facts, agents)
    prediction, no_prediction = _prediction(config, facts)
    digest, agent_digests, saved = _digest(out, str(record.get("id", "")))
    return Shown(
        name=name,
        facts=facts,
        state=run_status(out, config).state,
        rounds=config.run.rounds,
        config=flat(tomllib.loads(toml)),
        toml=toml,
        record=record,
        events=_events(record),
        links=links,
        no_links=no_links,
        aligned=prediction.aligned if prediction else (),
        independent=prediction.independent if prediction else (),
        no_prediction=no_prediction,
        digest=digest,
        agent_digests=agent_digests,
        saved=saved,
        agent_names=_names(config, agents),
    )


def _events(record: Mapping[str, Any]) -> list[Event]:
    """Return the restarts and the changes of the agents that run.json lists, by round."""
    found = []
    for start in list(record.get("starts") or [])[1:]:
        hosts = ", ".join(map(str, start.get("hosts", ())))
        processes = start.get("processes", "?")
        where = f"on {processes} process{'' if processes == 1 else 'es'} ({hosts})"
        found.append(Event(int(start["first_round"]), "restart", f"{start['started']}, {where}"))
    for event in record.get("events") or []:
        found += _changes(event)
    return sorted(found, key=lambda event: event.round)


def _changes(event: Mapping[str, Any]) -> list[Event]:
    """Return what an event of run.json is: agents lost, adopted, or new."""
    found = []
    for kind in CHANGES:
        agents = tuple(int(agent) for agent in event.get(kind) or ())
        if agents:
            said = [f"agent{'s' * (len(agents) > 1)} {', '.join(map(str, agents))}"]
            for key, text in (("agents", "{:,} go on"), ("recovery_ms", "after {:.1f} ms"),
                              ("gap", "spectral gap {:.3g}"), ("when", "{}")):  # fmt: skip
                if event.get(key) is not None:
                    said.append(text.format(event[key]))
            found.append(Event(int(event["round"]), kind, ", ".join(said), agents))
    return found


def _names(config: Config, agents: int) -> Sequence[str]:
    """Return the names of the shards; none if the shards are elsewhere."""
    try:
        names = [entry.name for entry in build.open_index(config).agents]
    except (DecdpoError, OSError):
        return ()
    return names if len(names) == agents else ()


def _links(config: Config, facts: RunFacts, agents: int) -> tuple[Links | None, str]:
    """Return who sends to whom, or why there is nothing to draw."""
    if config.topology is None:
        kind = config.algorithm.kind
        if not facts.records[-1]["bytes"]:
            return None, f"{kind}: nothing is sent"
        return None, f"{kind}: all messages go to agent 0, the server, and back"
    try:
        schedule = build.make_topology(config, [1] * agents)
    except DecdpoError as fault:
        return None, f"the graph is not drawn: {fault.what}"
    last = facts.records[-1]
    done = int(last["round"])
    varies = config.topology.graph in TIME_VARYING
    rounds = max(min(done, LOOKED_AT), 1) if varies else 1
    size = last["bytes"] / last["messages"] if last["messages"] else 0.0
    pairs = _pairs(schedule, agents, rounds)
    return Links(config.topology.graph, agents, pairs, size, done), ""


def _pairs(schedule: Schedule, agents: int, rounds: int) -> dict[tuple[int, int], float]:
    counts: dict[tuple[int, int], int] = {}
    for t in range(rounds):
        mixing = schedule.mixing(t)
        for agent in range(agents):
            for source in mixing.row(agent).sources:
                counts[source, agent] = counts.get((source, agent), 0) + 1
    return {pair: count / rounds for pair, count in counts.items()}


def _prediction(config: Config, facts: RunFacts) -> tuple[Prediction | None, str]:
    """Return the predicted consensus distances, or why the theory has none of this run."""
    optim, records = config.optim, facts.records
    rho = records[-1].get("rho")
    if config.topology is None or rho is None:
        return None, "no graph contracts the disagreement"
    if config.algorithm.kind != "dsgd" or config.staleness.max_age:
        return None, "the recursion is that of dsgd with messages in time"
    if not isinstance(optim, Sgd) or optim.momentum:
        return None, "the recursion is that of steps without momentum"
    if config.pace.own or config.privacy.on:
        return None, "the recursion is that of agents that step alike, without noise"
    if config.topology.graph in TIME_VARYING:
        return None, "the graph changes from round to round"
    steps = config.algorithm.local_steps
    rate = make_learning_rate(optim, config.run.rounds * steps)
    kept = [r for r in records if r.get("consensus_distance") is not None]
    if len(kept) != len(records):
        return None, "the distance was not recorded in every record"
    found = predict(
        [r["round"] for r in records],
        [r["consensus_distance"] for r in records],
        rho,
        lambda t: rate(t * steps - 1),
    )
    return found, "" if found else "no distance above zero is recorded, or nothing contracts it"


def _digest(out: Path, run: str) -> tuple[str, Sequence[str], int | None]:
    """Return the digest of the newest checkpoint, those of few agents, and its round."""
    try:
        folder = locate(out, None, run)
        manifest = Manifest.read(folder)
        if manifest.nbytes > MOST_DIGESTED:
            size = f"{manifest.nbytes / 2**20:,.0f} MiB"
            return f"decdpo checkpoint digest reads the {size} of {folder.name}", (), None
        lines = [f"{agent}  {found.x}" for agent, found in digests(folder)]
    except (DecdpoError, OSError) as fault:
        # A checkpoint may go while it is read: training replaces it by a newer one.
        known = fault if isinstance(fault, DecdpoError) else os_fault(fault)
        return f"no digest: {known.what}", (), None
    text = "".join(f"{line}\n" for line in lines)
    listed = lines if len(lines) <= MOST_LISTED else ()
    return hashlib.sha256(text.encode()).hexdigest(), listed, manifest.round
