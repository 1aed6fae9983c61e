"""A run in progress: its agents and everything the loop needs.

What a process holds, in bytes, for P parameters of which M are shared, in float32:

    x                 4 P for each of its agents: what is trained, sent, saved
    moments           4 P for each agent and moment: 2 of AdamW, 1 of SGD with momentum
    other states      of the algorithm: see the class of its state
    gradient          4 P, one for all agents
    narrow copy       2 P, one for all, where a language model computes in bfloat16
    reference         4 P or 2 P, only with policy.cache_reference = false
    messages          4 M for each agent with neighbours in the process; 8 M for each neighbour
                      elsewhere (two slots), and what is sent to it
    one vector more   4 P while something is measured: the mean of all models; or, when a run is
                      resumed with another configuration, where it began
    a checkpoint      a copy of all states up to 256 MiB, none above (on a GPU: in host memory)
    gradient norm     8 P while it is summed, if several agents are and it is asked for

A process that only measures or exports (``session.measured``) holds x once for all of its agents,
and the mean.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from decdpo.algorithms.base import Algorithm, plain_optimizer
from decdpo.comm.world import Exchange, Trace, World
from decdpo.messages import Inbox
from decdpo.params.flat import FlatParams
from decdpo.params.optim import SGD
from decdpo.policies.base import Draw
from decdpo.policies.objective import Batch, Objective
from decdpo.policies.stats import Stats
from decdpo.timing import Parts
from decdpo.topology import row


class Sampler(Protocol):
    """Says which pairs an agent sees: a pure function of the local-step number."""

    def rows(self, step: int, size: int) -> np.ndarray:
        """Return the shard rows of local step ``step``, (size,), or as many in the mean."""
        ...


class Schedule(row.Schedule, Protocol):
    """Mixing weights of every round, with a name: equal on runs that mix alike."""

    @property
    def digest(self) -> str: ...

    @property
    def rho(self) -> float | None:
        """Factor by which a round contracts disagreement; None if no graph decides that."""
        ...


class Monitor(Protocol):
    """Writes down how training goes."""

    def begin(self, run: "Run") -> None:
        """Measure the start, and record it as round 0 if the run begins there. Collective."""
        ...

    def observe(self, round: int, run: "Run", seconds: float) -> None:
        """Record ``round``, whose local steps took ``seconds``, if due. Collective when due."""
        ...

    def sound(self, round: int, run: "Run", *, last: bool) -> bool:
        """Say whether the state after ``round`` is worth saving. Collective.

        last : whether the run would end here. Raises if it has gone wrong for good.
        """
        ...

    def changed(self, event: Mapping[str, Any], run: "Run") -> None:
        """Take note that agents were lost or have come; ``event`` is part of the next record."""
        ...

    def working(self, what: str) -> AbstractContextManager[object]:
        """Return a context in which ``what`` is done, which is said if it takes long."""
        ...

    def sync(self) -> None:
        """Force what was recorded to disk."""
        ...

    def close(self) -> None:
        """End the record."""
        ...


class Store(Protocol):
    """Keeps checkpoints."""

    def due(self, done: int) -> bool:
        """Say whether the state after ``done`` rounds is saved."""
        ...

    def save(self, done: int, agents: "list[Agent]") -> None:
        """Save the state after ``done`` rounds. Collective."""
        ...

    def poll(self) -> None:
        """Raise if an earlier save has failed in the background."""
        ...

    def flush(self) -> None:
        """Wait until every save is on disk. Collective."""
        ...


@dataclass
class Agent:
    """One participant: its shard, its parameters, its algorithm's state.

    id : 0 ... n-1. params : (P,) vector and gradient. state : the algorithm's, whose ``x`` is
    ``params.data``. data : the encoded shard. stats : of this round's local steps.
    """

    id: int
    params: FlatParams
    state: Any
    data: Any
    sampler: Sampler
    stats: Stats

    def batch(
        self, rows: np.ndarray, model: FlatParams | None = None, draw: Draw | None = None
    ) -> Batch:
        """Return the shard rows ``rows`` (B,), to be scored by the agent's model.

        With another ``model`` the batch is for measuring, and leaves the agent's state alone: the
        shared part is the model's, the personal part the agent's own. draw : of a local step.
        """
        running = getattr(self.state, "running", None)
        if model is None:
            return Batch(self.params, self.data, rows, running, draw)
        model = self.params.with_shared(model)
        return Batch(model, self.data, rows, None if running is None else running.clone(), draw)


@dataclass
class MeasuredState:
    """The state of agents that are only measured, one after another, in the same memory.

    x : (P,) the parameters. running : (1,) the running statistic of the loss, if it has one.
    """

    x: Tensor
    running: Tensor | None


class Pace(Protocol):
    """Says how many local steps each agent takes, where they do not all take as many."""

    def steps(self, agent: int, round: int) -> range:
        """Return the numbers of the agent's local steps in ``round``, counted from round 0."""
        ...

    def begin(self, run: "Run", round: int) -> None:
        """Let ``round`` begin for the local agents. Collective."""
        ...

    def took(self, run: "Run", round: int, seconds: float) -> None:
        """Take note that the local steps of ``round`` took this process ``seconds``."""
        ...


class Privacy(Protocol):
    """Clips and noises gradients."""

    def gradients(self, batches: Iterable[Batch]) -> Iterator[Stats]:
        """Do as ``Objective.gradients`` does, with every gradient clipped; a batch may be empty."""
        ...

    def blur(self, params: FlatParams, data: Any, step: int) -> None:
        """Add the noise of local step ``step`` to the gradient; data : the agent's shard."""
        ...


class Recovery(Protocol):
    """Accounts for agents that are lost; every process does the same.

    full : the schedule of all agents.
    """

    @property
    def full(self) -> Schedule: ...

    def between(self, run: "Run", t: int) -> None:
        """Let round ``t`` begin among those that are left. Collective."""
        ...

    def redo(self, run: "Run", t: int) -> None:
        """Give round ``t``, which has begun, its new rows, for it to be collected again."""
        ...

    def absent(self, run: "Run") -> tuple[int, ...]:
        """Return the agents that took part and do not any more, ascending."""
        ...

    def mixes(self, run: "Run") -> bool:
        """Say whether the round in which agents were lost is mixed."""
        ...

    def after(self, run: "Run", t: int) -> None:
        """Rebuild what the losses of round ``t`` have broken, once it is mixed. Collective."""
        ...


@dataclass
class Run:
    """Everything the loop needs; ``decdpo.build`` makes it.

    watch : is shown round, agent and what it receives before that is mixed; returns the inbox.
    pace : of agents that do not all take ``local_steps`` in a round. privacy : of the gradients
    that local steps are taken along.
    """

    world: World
    exchange: Exchange | None
    algorithm: Algorithm
    objective: Objective
    schedule: Schedule
    agents: list[Agent]
    lr: Callable[[int], float]
    local_steps: int
    batch_size: int
    overlap: bool
    num_rounds: int
    monitor: Monitor
    store: Store
    next_round: int = 0
    trace: Trace | None = None
    watch: Callable[[int, int, Inbox], Inbox] | None = None
    parts: Parts = field(default_factory=Parts)
    recovery: Recovery | None = None
    pace: Pace | None = None
    privacy: Privacy | None = None

    @property
    def plain(self) -> SGD | None:
        """The optimizer where its plain steps are all that agents do in a local step, so that those
        of many may be taken together; None elsewhere."""
        if self.privacy is not None or not self.objective.steps_together:
            return None
        return plain_optimizer(self.algorithm)

    def steps(self, agent: int, round: int) -> range:
        """Return the numbers of the local steps that ``agent`` takes in ``round``, E of them."""
        if self.pace is not None:
            return self.pace.steps(agent, round)
        return range(round * self.local_steps, (round + 1) * self.local_steps)
