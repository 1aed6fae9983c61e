"""The training loop: local steps, one exchange, the next round."""

import math
from collections.abc import Sequence
from enum import Enum
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import NumericalError
from decdpo.params.support import touched
from decdpo.params.threads import one_thread
from decdpo.policies.base import Draw
from decdpo.policies.objective import Batch
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
    # Plain steps of many agents are work on small vectors.
    take_steps = local_steps if run.plain is None else one_thread()(local_steps)
    with span(run, "measure", run.next_round):
        run.monitor.begin(run)
    for t in range(run.next_round, run.num_rounds):
        if run.recovery is not None:
            run.recovery.between(run, t)
        mixing = run.schedule.mixing(t)
        if run.pace is not None:
            run.pace.begin(run, t)
        if run.overlap:
            start(run, t, mixing)
        with span(run, "compute", t) as compute:
            take_steps(run, t, [a for a in run.agents if mixing.row(a.id).active])
        if run.pace is not None:
            run.pace.took(run, t, compute.seconds)
        if not run.overlap:
            start(run, t, mixing)
        with span(run, "mix", t):
            finish(run, t)
        with span(run, "measure", t):
            run.monitor.observe(t, run, compute.seconds)
        run.store.poll()
        stop = run.world.stop_due(t)
        if stop or run.store.due(t + 1):
            save(run, t, last=stop or t + 1 == run.num_rounds)
        if stop and t + 1 < run.num_rounds:
            flush(run, t)
            return Ending.STOPPED
    flush(run, run.num_rounds - 1)
    return Ending.DONE


class span:
    """Times a part of the loop: for the sums of the run, and for its trace.

    What is spent blocked in the exchange counts as waiting. The exchange traces what it does
    itself, message by message.
    """

    def __init__(self, run: Run, name: str, round: int) -> None:
        self.seconds = 0.0
        self._run = run
        self._name = name
        self._round = round

    def __enter__(self) -> "span":
        self._waited = waited(self._run)
        self._began = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        ended = perf_counter()
        self.seconds = ended - self._began
        blocked = waited(self._run) - self._waited
        self._run.parts.add(self._name, self.seconds - blocked)
        self._run.parts.add("wait", blocked)
        if self._run.trace is not None and self._name not in ("post", "mix"):
            self._run.trace(self._name, self._began, ended, {"round": self._round})


def waited(run: Run) -> float:
    """Return the seconds that the exchange of this process has been blocked so far."""
    return 0.0 if run.exchange is None else run.exchange.counters.wait_seconds


def save(run: Run, t: int, *, last: bool) -> None:
    """Save the state after round ``t``, and the metrics up to it. Collective.

    A state in doubt is not saved, so that the last good checkpoint stays; if it is the ``last``, or
    cannot be used at all, ``NumericalError`` is raised on all processes.
    """
    with span(run, "checkpoint", t):
        run.world.purpose = f"the checkpoint of round {t + 1}"
        faults = (not_finite(run, agent, f"after round {t}") for agent in run.agents)
        run.world.require(next(filter(None, faults), None))
        if run.monitor.sound(t, run, last=last):
            run.monitor.sync()
            run.store.save(t + 1, run.agents)


def flush(run: Run, t: int) -> None:
    """Wait until what was saved up to round ``t`` is on disk. Collective."""
    with run.monitor.working(f"writing the checkpoint of round {t + 1}"):
        run.store.flush()


def start(run: Run, t: int, mixing: Mixing) -> None:
    """Send every active agent's message of round ``t`` on its way; the others listen."""
    if run.exchange is not None:
        with span(run, "post", t):
            for agent in run.agents:
                row = mixing.row(agent.id)
                message = run.algorithm.message(agent.state) if row.active else None
                run.exchange.start(agent.id, t, row, message)


def local_steps(run: Run, t: int, active: list[Agent]) -> None:
    """Take the local steps of round ``t`` with the ``active`` agents of this process, E of each."""
    for agent in run.agents:
        agent.stats = Stats.zero(agent.stats.names)
    steps = {agent.id: run.steps(agent.id, t) for agent in active}
    take = steps_in_turn if run.plain is None else steps_together
    last: dict[int, np.ndarray] = {}
    for h in range(max(map(len, steps.values()), default=0)):
        taking = [agent for agent in active if h < len(steps[agent.id])]
        rows = [a.sampler.rows(steps[a.id][h], run.batch_size) for a in taking]
        last.update(zip((agent.id for agent in taking), rows))
        batches = [
            agent.batch(chosen, draw=Draw(agent.id, steps[agent.id][h]))
            for agent, chosen in zip(taking, rows)
        ]
        # The step size is that of the share of the round that the agent has done.
        begun = t * run.local_steps
        rates = [run.lr(begun + h * run.local_steps // len(steps[agent.id])) for agent in taking]
        try:
            take(run, taking, batches, rates)
        except NumericalError as fault:
            what = f"round {t}, local step {h}: {fault.what}"
            raise NumericalError(what, remedy(run)) from None
    for agent in active:
        broken = not_finite(run, agent, f"after its local steps of round {t}", last[agent.id])
        if broken is not None:
            raise broken


def steps_in_turn(
    run: Run, agents: list[Agent], batches: list[Batch], rates: Sequence[float]
) -> None:
    """Take a local step with one agent after another, each with its batch and its step size.

    Raises ``NumericalError`` if a loss, a log-probability or a gradient is not finite.
    """
    extremes: list[Tensor] = []
    gradients = (run.privacy or run.objective).gradients(batches)
    for agent, batch, lr, stats in zip(agents, batches, rates, gradients):
        agent.stats += stats
        if run.privacy is not None and batch.draw is not None:
            run.privacy.blur(agent.params, agent.data, batch.draw.step)
        extremes += torch.aminmax(touched(agent.params.grad))
        run.algorithm.local_step(agent.state, agent.params.grad, lr)
    # Asked for all agents at once, since a GPU answers only when all of its work is done.
    if agents:
        check_gradients(agents, batches, torch.stack(extremes).isfinite().view(-1, 2).all(1))


def steps_together(
    run: Run, agents: list[Agent], batches: list[Batch], rates: Sequence[float]
) -> None:
    """Do ``steps_in_turn``, to the same bits, in few calls: where steps are plain ones."""
    found, finite = run.objective.steps(batches, rates)
    optimizer = run.plain
    assert optimizer is not None
    for agent, stats in zip(agents, found):
        agent.stats += stats
        optimizer.count(agent.state.optim)
    check_gradients(agents, batches, torch.from_numpy(finite))


def finish(run: Run, t: int) -> None:
    """Collect round ``t``, agree on it, and fold what the neighbours sent into every state.

    If agents are lost, the round is collected again among those that are left, as often as need be.
    """
    if run.exchange is None:
        return
    recovery, before = run.recovery, run.world.members
    while (now := run.world.commit(t, run.exchange.collect(t))) is not before:
        assert recovery is not None
        recovery.redo(run, t)
        before = now
    if recovery is None or recovery.mixes(run):
        for agent in run.agents:
            inbox = run.exchange.inbox(agent.id, t)
            if run.watch is not None:
                inbox = run.watch(t, agent.id, inbox)
            run.algorithm.mix(agent.state, inbox)
    if recovery is not None:
        recovery.after(run, t)


def check_gradients(agents: list[Agent], batches: list[Batch], finite: Tensor) -> None:
    """Raise ``NumericalError`` if a gradient has a NaN or an infinity, before it is sent.

    Some algorithms send a gradient, or keep it, before it shows in a parameter.

    finite : (A,) bool, of every agent.
    """
    if not bool(finite.all()):
        first = int(finite.logical_not().nonzero()[0])
        raise NumericalError(
            f"the gradient of agent {agents[first].id} has NaN or infinite values, on "
            + source_rows(agents[first], batches[first].rows)
        )


def not_finite(
    run: Run, agent: Agent, when: str, rows: np.ndarray | None = None
) -> NumericalError | None:
    """Return the error if a parameter is NaN or infinite.

    rows : (B,) shard rows of the last local step, if that may be the cause.
    """
    # One pass and no temporary: if a sum is finite, every term is.
    if math.isfinite(float(agent.params.data.sum())):
        return None
    bad = int((~torch.isfinite(agent.params.data)).sum())
    if not bad:
        return None
    last = "" if rows is None else f", the last of them on {source_rows(agent, rows)}"
    return NumericalError(
        f"agent {agent.id} has {bad} NaN or infinite parameters {when}{last}", remedy(run)
    )


def remedy(run: Run) -> str:
    """Return what helps against values that are not finite."""
    return f"{run.algorithm.needs.smaller_steps}; what was saved before is intact"


def source_rows(agent: Agent, rows: np.ndarray) -> str:
    """Name the first of the shard rows ``rows`` (B,) by where they come from."""
    return "source rows " + agent.data.source_rows.name(rows[:8])
