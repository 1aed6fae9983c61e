"""From a configuration and its agents to the run that the loop takes."""

from pathlib import Path

from decdpo.algorithms.wrappers.recall import told_since
from decdpo.algorithms.wrappers.running import model_in_message
from decdpo.build.adapters import factors_of
from decdpo.build.agents import Ensemble
from decdpo.build.learning import make_learning_rate
from decdpo.build.meeting import AGES
from decdpo.build.pace import make_pace
from decdpo.build.privacy import make_spent
from decdpo.comm.late.delays import age_file
from decdpo.comm.late.staleness import AgeLog, StaleExchange
from decdpo.comm.world import Exchange, World
from decdpo.config import Config, policies, schema
from decdpo.metrics.evaluation import HeldOut
from decdpo.metrics.interference import Interference
from decdpo.metrics.measures import Measures, choose_measures
from decdpo.metrics.recorder import RECORDS, Metrics
from decdpo.progress import Progress
from decdpo.records import keep_until
from decdpo.recovery import Recovery
from decdpo.run import Agent, Run, Store


def make_measures(config: Config, most_heldout: int) -> Measures:
    """Return what is measured; most_heldout : held-out pairs of the agent that has most."""
    return choose_measures(
        costly=isinstance(config.policy, policies.CausalLM),
        rounds=config.run.rounds,
        round_pairs=config.algorithm.local_steps * config.data.batch_size,
        most_heldout=most_heldout,
        every=config.log.every,
        heldout_pairs=config.log.heldout_pairs,
        gradient_pairs=config.log.gradient_pairs,
    )


def make_heldout(
    config: Config, world: World, agents: list[Agent]
) -> tuple[HeldOut, int, str]:
    """Return what is measured, the rounds between two records, and both in words. Collective.

    The words are empty where all held-out pairs are measured and the gradient norm as well.
    """
    most = max(world.collect({a.id: a.data.num_heldout for a in agents}).values())
    found = make_measures(config, most)
    heldout = HeldOut(
        agents, config.run.seed, found.heldout_pairs, found.training_pairs, found.gradient
    )
    partly = not found.gradient or 0 < found.heldout_pairs < most
    return heldout, found.every, found.words(most) if partly else ""


def make_run(
    config: Config,
    world: World,
    ensemble: Ensemble,
    exchange: Exchange | None,
    store: Store,
    out: Path,
    next_round: int,
    progress: str = "auto",
    recovery: Recovery | None = None,
) -> Run:
    """Put the pieces of a run together; it continues after ``next_round`` rounds. Collective.

    progress : how the run shows how far it is, of ``progress.MODES``. recovery : accounts for lost
    agents; None where none is lost, or may be.
    """
    schedule = ensemble.schedule if recovery is None else recovery.schedule()
    agents = ensemble.agents
    steps = config.algorithm.local_steps
    if isinstance(exchange, StaleExchange):
        rows = {a.id: schedule.mixing(next_round).row(a.id) for a in agents}
        exchange.recall(rows, {a.id: told_since(a.state) for a in agents})
    if exchange is not None and isinstance(config.staleness, schema.Arrival):
        for agent in agents:
            keep_until(age_file(out / AGES, agent.id), next_round)
        exchange = AgeLog(exchange, out / AGES)
    pace = make_pace(config, world, ensemble.algorithm, ensemble.pairs, out, next_round)
    heldout, every, words = make_heldout(config, world, agents)
    rounds = config.run.rounds
    layout = agents[0].params.layout
    model = model_in_message(ensemble.algorithm, layout.num_shared)
    factors, watch = factors_of(ensemble.objective.policy), None
    # A fragment cuts factors anywhere, and what is mixed of them is no product.
    if factors and model is not None and config.algorithm.fragments == 1:
        watch = Interference(factors, model, lambda done: done % every == 0 or done == rounds)
    monitor = Metrics(
        out / RECORDS,
        heldout,
        every=every,
        measures=words,
        rho=schedule.rho,
        progress=Progress(
            next_round, config.run.rounds, enabled=world.is_root, mode=progress
        ),
        start_round=next_round,
        is_root=world.is_root,
        diverged_above=config.run.diverged_above,
        dashboard=config.log.tensorboard,
        interference=watch,
        spent=make_spent(config, ensemble.pairs),
    )
    return Run(
        world=world,
        exchange=exchange,
        algorithm=ensemble.algorithm,
        objective=ensemble.objective,
        schedule=schedule,
        agents=agents,
        lr=make_learning_rate(config.optim, config.run.rounds * steps),
        local_steps=steps,
        batch_size=config.data.batch_size,
        overlap=config.algorithm.overlap,
        num_rounds=config.run.rounds,
        monitor=monitor,
        store=store,
        next_round=next_round,
        watch=watch,
        recovery=recovery,
        pace=pace,
        privacy=ensemble.privacy,
    )
