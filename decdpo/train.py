"""The training loop: local steps, one exchange, the next round."""

import math
from enum import Enum
from time import perf_counter

import numpy as np
import torch

from decdpo.errors import NumericalError
from decdpo.policies.stats import Stats
from decdpo.run import Agent, Run
from decdpo.topology.row import Mixing


class Ending(Enum):
    """How the loop ended."""

    DONE = "done"
    STOPPED = "stopped"


def train(run: Run) -> Ending:
    """Run the rounds from ``run.next_round`` on. Collective.

    E local steps          x_i <- x_i - eta g_i(x_i)
    one exchange           x_i <- x_i + sum_j w_ij (m_j - m_i)

    Messages leave before the local steps if ``run.overlap`` (combine while adapting: they travel
    during the gradients, at no staleness), after them otherwise (adapt, then combine). An
    agent whose row is not active takes no local step and sends nothing.
    """
    for t in range(run.next_round, run.num_rounds):
        mixing = run.schedule.mixing(t)
        if run.overlap:
            start(run, t, mixing)
        with span(run, "compute", t) as compute:
            local_steps(run, t, [a for a in run.agents if mixing.row(a.id).active])
        if not run.overlap:
            start(run, t, mixing)
        finish(run, t)
        with span(run, "measure", t):
            run.monitor.observe(t, run, compute.seconds)
        run.store.poll()
        stop = run.world.stop_due(t)
        if stop or run.store.due(t + 1):
            save(run, t)
        if stop and t + 1 < run.num_rounds:
            run.store.flush()
            return Ending.STOPPED
    run.store.flush()
    return Ending.DONE


class span:
    """Times a part of the loop, and tells the run's trace of it."""

    def __init__(self, run: Run, name: str, round: int) -> None:
        self.seconds = 0.0
        self._trace = run.trace
        self._name = name
        self._round = round

    def __enter__(self) -> "span":
        self._began = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        ended = perf_counter()
        self.seconds = ended - self._began
        if self._trace is not None:
            self._trace(self._name, self._began, ended, {"round": self._round})


def save(run: Run, t: int) -> None:
    """Save the state after round ``t``, and the metrics up to it. Collective."""
    with span(run, "checkpoint", t):
        run.monitor.sync()
        run.store.save(t + 1, run.agents)


def start(run: Run, t: int, mixing: Mixing) -> None:
    """Send every active agent's message of round ``t`` on its way; the others listen."""
    if run.exchange is not None:
        for agent in run.agents:
            row = mixing.row(agent.id)
            message = run.algorithm.message(agent.state) if row.active else None
            run.exchange.start(agent.id, t, row, message)


def local_steps(run: Run, t: int, active: list[Agent]) -> None:
    """Take the E local steps of round ``t`` with the ``active`` agents of this process."""
    for agent in run.agents:
        agent.stats = Stats.zero()
    for h in range(run.local_steps):
        step = t * run.local_steps + h
        lr = run.lr(step)
        batches = [a.batch(a.sampler.rows(step, run.batch_size)) for a in active]
        try:
            for agent, stats in zip(active, run.objective.gradients(batches)):
                agent.stats += stats
                run.algorithm.local_step(agent.state, agent.params.grad, lr)
        except NumericalError as fault:
            raise NumericalError(f"round {t}, local step {h}: {fault.what}", fault.remedy) from None
    for agent, batch in zip(active, batches):
        check_finite(agent, t, batch.rows)


def finish(run: Run, t: int) -> None:
    """Fold what the neighbours sent in round ``t`` into every agent's state."""
    if run.exchange is not None:
        for agent in run.agents:
            run.algorithm.mix(agent.state, run.exchange.finish(agent.id, t))


def check_finite(agent: Agent, t: int, rows: np.ndarray) -> None:
    """Raise ``NumericalError`` if a parameter is NaN or infinite, before a neighbour hears of it.

    rows : (B,) shard rows of the last local step.
    """
    # One pass and no temporary: a sum is finite only if every term is.
    if not math.isfinite(float(agent.params.data.sum())):
        bad = int((~torch.isfinite(agent.params.data)).sum())
        source = ", ".join(str(row) for row in agent.data.source_rows[rows][:8])
        raise NumericalError(
            f"agent {agent.id} has {bad} NaN or infinite parameters after its local steps of "
            f"round {t}, the last of them on source rows {source}",
            "lower optim.lr or set optim.clip_norm; what was saved before is intact",
        )
