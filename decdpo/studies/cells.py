"""A cell: one piece of work of a study, known by a digest of everything its result depends on.

The cells of a study lie side by side in the folder ``cells``. ``DIGEST.toml`` is the configuration
of a training cell, ``DIGEST/`` holds its ``metrics.jsonl``, written by this module or, being an
ordinary run folder, by `decdpo train`. A cell that is finished is never worked on again.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from decdpo import build
from decdpo.config import Config, parse
from decdpo.data.index import ShardIndex
from decdpo.data.shard import PreferenceShard
from decdpo.errors import DataError
from decdpo.files import read_checked, reason, replacing
from decdpo.metrics.divergence import excess
from decdpo.metrics.evaluation import average_model, pooled
from decdpo.metrics.recorder import Metrics
from decdpo.policies.base import Policy
from decdpo.progress import Progress
from decdpo.report.curves import read_metrics
from decdpo.run import Agent, Run
from decdpo.session.job import Job
from decdpo.studies.noted import Noted, clipped_gradient_sq
from decdpo.studies.table import Row
from decdpo.train import train

VERSION = 1
"""Changes whenever the same cell would give other numbers."""

DIVERGED = 1000.0
"""A cell that ends with a loss so many times that of its start is marked as diverged."""

GRADIENTS = "gradients.json"
"""What a cell noted of its batch gradients."""

T = TypeVar("T")
Value = str | int | float | bool | None
"""One value of a record."""


@dataclass(frozen=True)
class Gradients:
    """What ``GRADIENTS`` holds, see ``noted.py``."""

    clipped_gradient_sq: float


class Memory:
    """Encoded shards of the data set in use, shared by the cells that train on it."""

    def __init__(self) -> None:
        self._folder = ""
        self._encoded: dict[tuple[str, str, str], Any] = {}

    def open(self, folder: str) -> ShardIndex:
        """Read the index of ``folder``; forget what was encoded of another one."""
        if folder != self._folder:
            self._encoded.clear()
            self._folder = folder
        return ShardIndex.load(folder)

    def encode(self, settings: str, policy: Policy, shard: PreferenceShard) -> Any:
        """Return the encoded shard, from memory if such a policy has read it.

        settings : of the policy, all of them: lengths, templates and types of numbers count too.
        """
        key = (shard.digest, f"{policy.layout.digest} {policy.digest}", settings)
        if key not in self._encoded:
            self._encoded[key] = policy.encode(shard)
        return self._encoded[key]


class Work(ABC):
    """What a cell does; a frozen dataclass."""

    @abstractmethod
    def identity(self) -> str:
        """Return a text that is equal only where the result would be equal."""

    @abstractmethod
    def finished(self, folder: Path) -> bool:
        """Say whether ``folder`` holds the whole result."""

    @abstractmethod
    def run(self, folder: Path, memory: Memory) -> None:
        """Do the work and leave the result in ``folder``, which exists.

        Raises a ``DecdpoError`` if it cannot be done.
        """

    @abstractmethod
    def records(self, folder: Path, memory: Memory) -> list[Row]:
        """Return what a finished cell measured, in order."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    labels : where it lies, {column: value}; the seed is one of them. work : what it does.
    """

    labels: Mapping[str, Any]
    work: Work

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the cell."""
        text = f"{VERSION} {type(self.work).__name__} {self.work.identity()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The labels as text, for people."""
        return ", ".join(f"{key} {value}" for key, value in self.labels.items())


@dataclass(frozen=True)
class Direct(Work):
    """Work that is a plain computation with few numbers as its result.

    A subclass adds the arguments as fields and says in ``measure`` what to compute.
    """

    @abstractmethod
    def measure(self) -> list[Row]:
        """Compute the records."""

    def identity(self) -> str:
        """Return the arguments."""
        return json.dumps(asdict(self), sort_keys=True, default=str)

    def finished(self, folder: Path) -> bool:
        """Say whether the records are there."""
        return (folder / "records.json").exists()

    def run(self, folder: Path, memory: Memory) -> None:
        """Compute and write the records."""
        records = self.measure()
        with replacing(folder / "records.json", mode=0o644) as partial:
            partial.write_text(json.dumps(records) + "\n", encoding="utf-8")

    def records(self, folder: Path, memory: Memory) -> list[Row]:
        """Read the records."""
        return read_result(folder / "records.json", list[dict[str, Value]])


def read_result(path: Path, kind: type[T]) -> T:
    """Return what a cell has written, as ``kind``. Raises ``DataError`` if it is damaged."""
    try:
        return read_checked(path, kind)
    except (OSError, ValueError) as fault:
        raise DataError(
            f"{path} cannot be read: {reason(fault)}",
            f"remove the folder {path.parent}: its cell is then computed again",
        ) from None


class NoCheckpoints:
    """A store that keeps nothing: a cell is short, and begins again after a kill."""

    def due(self, done: int) -> bool:
        """Say that nothing is to be saved."""
        return False

    def save(self, done: int, agents: list[Agent]) -> None:
        """Do nothing."""

    def poll(self) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Training(Work):
    """One training run in this process.

    config : the effective configuration. data : digest of its shards. noted : whether the last
    record also has ``clipped_gradient_sq``, see ``noted.py``; under mpirun it has not.
    """

    config: Config
    data: str
    noted: bool = False

    def identity(self) -> str:
        """Return the configuration with the content of the shards in place of their path."""
        config = self.config
        return replace(config, data=replace(config.data, shards=self.data)).to_toml()

    def finished(self, folder: Path) -> bool:
        """Say whether the last round is recorded."""
        path = folder / "metrics.jsonl"
        try:
            records = read_metrics(path) if path.exists() else []
        except DataError:
            # What is damaged is measured again.
            return False
        return bool(records) and records[-1]["round"] >= self.config.run.rounds

    def run(self, folder: Path, memory: Memory) -> None:
        """Train, without checkpoints."""
        for name in ("metrics.jsonl", GRADIENTS):
            (folder / name).unlink(missing_ok=True)
        job = Job("local")
        try:
            run = self._prepare(job, folder, memory)
            try:
                if self.noted:
                    run.algorithm = noted = Noted(run.algorithm)
                train(run)
                run.monitor.sync()
                self.after(run, folder)
                if self.noted:
                    value = clipped_gradient_sq(run, noted.squares)
                    write_result(folder / GRADIENTS, asdict(Gradients(value)))
            finally:
                run.monitor.close()
                if run.exchange is not None:
                    run.exchange.close()
        finally:
            job.close()

    def after(self, run: Run, folder: Path) -> None:
        """Note what else a finished run is asked; nothing here."""

    def records(self, folder: Path, memory: Memory) -> list[Row]:
        """Return the record of the start, as round 0, and those of the run.

        The last one has ``diverged`` if the run went on though its loss was beyond reason.
        """
        recorded = read_metrics(folder / "metrics.jsonl")
        if recorded[0]["round"] == 0:
            start = start_of(recorded.pop(0))
        else:
            # Resumed from an earlier version's checkpoint, or recorded by one.
            with self.prepared(memory) as run:
                start = start_record(run)
        records = [start, *recorded]
        if excess(start["loss"], records[-1].get("loss")) > DIVERGED:
            records[-1]["diverged"] = True
        if self.noted and (folder / GRADIENTS).exists():
            records[-1] |= asdict(read_result(folder / GRADIENTS, Gradients))
        return records

    @contextmanager
    def prepared(self, memory: Memory) -> Iterator[Run]:
        """Yield the run before its first round, to be measured and not to be trained."""
        job = Job("local")
        # The monitor begins its file anew, which must not be that of a finished run.
        with TemporaryDirectory() as scratch:
            try:
                run = self._prepare(job, Path(scratch), memory)
                yield run
                run.monitor.close()
            finally:
                job.close()

    def _prepare(self, job: Job, folder: Path, memory: Memory) -> Run:
        config = self.config
        index = memory.open(config.data.shards)
        count = build.num_agents(config, index)
        world = job.world(range(count), config.comm)
        device = job.device(config.device, config.policy.kind == "causal_lm")
        ensemble = build.make_ensemble(
            config, world, index, device, partial(memory.encode, repr(config.policy))
        )
        layout = ensemble.objective.policy.layout
        exchange = build.make_exchange(config, world, ensemble.algorithm, layout, device)
        run = build.make_run(config, world, ensemble, exchange, NoCheckpoints(), folder, 0)
        assert isinstance(run.monitor, Metrics)
        run.monitor.progress = Progress(0, config.run.rounds, enabled=False)
        return run


def start_of(record: Row) -> Row:
    """Return what a table has of the record of round 0, where all agents are one model."""
    start: Row = {
        "round": 0,
        "loss": record["loss"],
        "gradient_norm": record["gradient_norm"],
        "consensus_distance": 0.0,
    }
    for key in ("loss", "accuracy") if "heldout/average/loss" in record else ():
        for name in ("heldout", "heldout/average"):
            start[f"{name}/{key}"] = record[f"heldout/average/{key}"]
    return start


def start_record(run: Run) -> Row:
    """Measure what can be measured before the first round, as ``start_of`` has it."""
    assert isinstance(run.monitor, Metrics)
    heldout = run.monitor.heldout
    mean = average_model(run.world, run.agents)
    rows = heldout.gradient_rows
    norm = heldout.norm(run, mean)
    scored = run.objective.evaluations([a.batch(rows[a.id], mean) for a in run.agents])
    own = {a.id: stats for a, stats in zip(run.agents, scored)}
    record = {
        "round": 0,
        "loss": pooled(run.world, own).means()["loss"],
        "gradient_norm": norm,
        "consensus_distance": 0.0,
    }
    average = pooled(run.world, heldout.average(run, mean)).means()
    if average:
        for name in ("heldout", "heldout/average"):
            record[f"{name}/loss"] = average["loss"]
            record[f"{name}/accuracy"] = average["rewards/accuracies"]
    return record


def make_config(settings: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Config:
    """Return the configuration with these {"section.key": value} settings, checked.

    A cell goes on though it diverges, unless it is asked otherwise: its table says so.
    """
    settings = {"run.diverged_above": 0, **settings}
    return parse("", [*(f"{key}={_literal(v)}" for key, v in settings.items()), *overrides])


def _literal(value: Any) -> str:
    if isinstance(value, (bool, str, list, tuple)):
        return json.dumps(value)
    return repr(value.item() if isinstance(value, np.generic) else value)


def write_result(path: Path, record: Row) -> None:
    """Write what ``read_result`` reads."""
    with replacing(path, mode=0o644) as partial:
        partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
