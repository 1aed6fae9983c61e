"""An experiment in its run folder: trained, its records restored, its page left behind."""

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from decdpo import build
from decdpo.comm.history import HISTORY, History
from decdpo.config import Config
from decdpo.errors import DecdpoError
from decdpo.files import naming, replacing
from decdpo.metrics.dashboard import require_tensorboard
from decdpo.metrics.divergence import Diverged
from decdpo.metrics.evaluation import require_gradient
from decdpo.metrics.recorder import RECORDS, Metrics
from decdpo.records import Mark, keep_until, last_round
from decdpo.recovery import Recovery
from decdpo.report.curves import plot_run, read_metrics
from decdpo.report.end_table import end_table
from decdpo.report.start import block, shared_cores, warnings
from decdpo.report.summary import summarize
from decdpo.session.adoption import Adoption
from decdpo.session.endings import watching
from decdpo.session.experiment import Experiment
from decdpo.session.job import Job
from decdpo.session.record import (
    batch_job,
    command_line,
    record_end,
    record_event,
    record_start,
    versions,
)
from decdpo.session.saving import Checkpoints, job_end
from decdpo.session.start import start_facts
from decdpo.train import Ending, train

STARTED = "started"
"""The key in a checkpoint of the loss and the length of the parameters at the start of the run."""

SAVED = "earlier checkpoints are intact"
"""What may be said of a run once its first checkpoint is written."""


def execute(
    job: Job, experiment: Experiment, next_round: int, news: Mapping[str, Any] | None = None
) -> Ending:
    """Train from ``next_round`` on, and write the run's files. Collective.

    news : that agents are new, see ``growing.grow``.
    """
    config, world, out = experiment.config, experiment.world, experiment.out
    if config.log.tensorboard:
        job.together(require_tensorboard)
    if next_round == 0:
        require_gradient(world, experiment.objective, experiment.agents)
    if next_round == 0 or experiment.store.changed:
        # From here on there is always a checkpoint to resume from, of this very configuration.
        extra = {key: v for key, v in experiment.store.extra.items() if key != STARTED}
        experiment.store.save(next_round, experiment.states(), extra)
        experiment.store.flush()
    if world.is_root:
        with replacing(out / "config.toml", mode=0o644) as path:
            path.write_text(config.to_toml(), encoding="utf-8")
    start = _write_facts(job, experiment, next_round)
    with naming("the run cannot go on", out, SAVED):
        if news and world.is_root:
            record_event(out, news)
        return _train(job, experiment, next_round, start, news)


def _train(
    job: Job,
    experiment: Experiment,
    next_round: int,
    start: Mapping[str, Any],
    news: Mapping[str, Any] | None,
) -> Ending:
    """Run the loop, and leave the run's page behind. Collective. start : of ``start_facts``."""
    config, world, out = experiment.config, experiment.world, experiment.out
    recovery = make_recovery(job, experiment)
    store = Checkpoints(
        experiment.store,
        world,
        config.checkpoint,
        out,
        config.run.rounds,
        end=job_end(os.environ),
        nbytes=start["checkpoint"]["bytes"],
        say=job.say,
    )
    run = build.make_run(
        config,
        world,
        experiment.ensemble,
        experiment.exchange,
        store,
        out,
        next_round,
        experiment.progress,
        recovery,
    )
    run.trace = experiment.trace
    assert isinstance(run.monitor, Metrics)
    run.monitor.started = _started(experiment)
    history = experiment.history if recovery is None else recovery.history
    store.extra = partial(_beside, run.monitor, history)
    if run.monitor.spent is not None and next_round < config.run.rounds:
        job.say(run.monitor.spent.words(run, config.run.rounds))
        if warning := run.monitor.spent.warning:
            job.say(f"warning: {warning}")
    if news:
        run.monitor.changed(news, run)
    with watching(job, world, out, experiment.store):
        try:
            ending = train(run)
            end = run.monitor.account.close(run, experiment.redone)
            if run.monitor.spent is not None:
                end["privacy"] = run.monitor.spent.words(run, next_round + end["rounds"])
        except Diverged:
            # Its page shows how.
            _leave_page(job, experiment)
            raise
        finally:
            run.monitor.close()
    job.wait_for_the_page()
    _leave_page(job, experiment, _say_end(job, experiment, end, shared_cores(start)))
    return ending


def _say_end(
    job: Job, experiment: Experiment, end: Mapping[str, Any], cores: Sequence[str]
) -> list[str]:
    """Say where the time went, keep it in run.json, and return the lines; none without a round."""
    if not end["rounds"]:
        return []
    table = end_table(end, cores)
    job.say("\n  ".join(table))
    if job.is_root:
        with naming("cannot write the end of the run", experiment.out, SAVED):
            record_end(experiment.out, {**end, "table": table})
    return table


def make_recovery(job: Job, experiment: Experiment) -> Recovery | None:
    """Return what accounts for lost agents; None if none is lost, and none may be."""
    history = experiment.history
    if not job.may_lose and experiment.world.members.agents == history.everybody:
        return None
    out = experiment.out

    def note(event: dict[str, Any], writes: bool) -> None:
        if writes:
            record_event(out, event)

    adoption = None
    if job.may_lose and experiment.config.faults.on_loss == "adopt":
        adoption = Adoption(experiment, job.say)
        adoption.look()
    return Recovery(experiment.schedule, history, note=note, say=job.say, adopt=adoption)


def _beside(monitor: Metrics, history: History) -> dict[str, Any]:
    """Return what is saved beside the states: how the run started, how far the records go, and who
    took part when."""
    started = {} if monitor.started is None else {STARTED: list(monitor.started)}
    changes = {HISTORY: history.to_json()} if history.changes else {}
    return {**monitor.mark(), **started, **changes}


def _started(experiment: Experiment) -> tuple[float, float] | None:
    """Return what the checkpoint says of the start, unless the configuration is another now."""
    found = None if experiment.store.changed else experiment.store.extra.get(STARTED)
    match found:
        case [float(loss), float(length)]:
            return loss, length
    return None


def _leave_page(job: Job, experiment: Experiment, end: Sequence[str] = ()) -> None:
    if experiment.world.is_root:
        with naming("cannot write the page of the run", experiment.out, SAVED):
            agents = experiment.world.num_agents
            write_page(experiment.out, experiment.config, agents, job.say, end)


def restore_records(job: Job, experiment: Experiment, done: int) -> None:
    """Cut the records of a run to those of the checkpoint loaded, after ``done`` rounds.

    Raises ``DataError`` on every process if they are not those that the checkpoint was saved with.
    Collective.
    """
    path = experiment.out / RECORDS
    mark = Mark.from_json(experiment.store.extra.get(RECORDS))

    def restore() -> None:
        if not job.is_root:
            return
        if mark is not None and mark.round and not path.exists():
            job.say(f"{path} is missing: the records begin anew after round {done}")
        experiment.redone = max(last_round(path) - done, 0) if path.exists() else 0
        keep_until(path, done, mark)

    job.together(restore)


def write_page(
    out: Path, config: Config, agents: int, say: Callable[[str], None], end: Sequence[str] = ()
) -> None:
    """Write ``summary.txt`` and ``curves.png`` from the metrics of the run folder ``out``.

    The figure is drawn unless ``log.figure`` is false.

    end : the lines of ``report.end_table``, which stand last in ``summary.txt``.
    """
    records = read_metrics(out / "metrics.jsonl")
    algorithm = config.algorithm.kind
    graph = f" on {config.graph}" if config.graph else ""
    title = f"{algorithm}{graph}, {agents} agents, {config.policy.kind}, {config.loss.kind}"
    facts = {
        "run": str(out),
        "data": config.data.shards,
        "rounds": f"{records[-1]['round'] if records else 0} of {config.run.rounds}",
    }
    text = summarize(records, facts, title) + "".join(f"{line}\n" for line in ("", *end) if end)
    (out / "summary.txt").write_text(text, encoding="utf-8")
    if not config.log.figure:
        return
    try:
        plot_run(records, out / "curves.png", title)
    except DecdpoError as fault:
        say(f"no curves.png: {fault.what}")


def starting(experiment: Experiment, next_round: int) -> dict[str, Any]:
    """Return what a start from ``next_round`` says of itself. Collective."""
    return start_facts(
        experiment.world,
        experiment.config,
        experiment.objective.policy,
        experiment.schedule,
        experiment.exchange,
        experiment.agents,
        experiment.device,
        experiment.out,
        next_round,
        experiment.store,
    )


def _write_facts(job: Job, experiment: Experiment, next_round: int) -> dict[str, Any]:
    """Say what starts, and write ``run.json``: that, versions, command, all starts. Collective.

    Returns what was said, as ``starting`` does.
    """
    start = starting(experiment, next_round)
    job.say("\n  ".join(["start", *block(start)]))
    for warning in warnings(start):
        job.say(f"warning: {warning}")
    here = {"host": platform.node(), "device": experiment.device}
    places = experiment.world.collect({i: here for i in experiment.world.local_agents})
    if not experiment.world.is_root:
        return start
    facts = {
        "id": experiment.store.run,
        "command": command_line(sys.argv),
        "folder": str(Path.cwd()),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "first_round": next_round,
        **batch_job(os.environ),
        "seed": experiment.config.run.seed,
        "processes": job.size,
        "agents": places,
        "versions": versions(),
        "names": dict(experiment.identity),
        "start": start,
    }
    record_start(experiment.out, facts)
    return start
