"""A run that goes on with more agents than its checkpoint holds.

A new agent begins at the mean of the models of its neighbours in the graph that it joins, out of
those that were saved; where a server averages, at the model that all hold; its optimizer is fresh.
Then an algorithm that restarts after a loss does so, which rebuilds conserved sums. Agents that
were lost before come back in the same way.
"""

from collections.abc import Mapping
from typing import Any

from decdpo.algorithms.base import Needs
from decdpo.comm.history import HISTORY, MEAN, Change
from decdpo.config.needs import check_newcomers
from decdpo.metrics.beginning import mean_beginning, of_factors
from decdpo.recovery import listed, moment, restart
from decdpo.session.adoption import models_for
from decdpo.session.experiment import Experiment
from decdpo.session.job import Job


def grow(job: Job, experiment: Experiment, done: int) -> dict[str, Any] | None:
    """Give a state to the agents that were not saved, after ``done`` rounds. Collective.

    Returns what happened, for the records of the run, which are not written here; None if all
    agents were saved. The history in ``experiment`` goes on with it.

    Raises ``ConfigError`` on every process if the algorithm takes no new agents.
    """
    world, held = experiment.world, experiment.store.held
    new = [agent for agent in world.members.agents if agent not in held]
    if not new:
        return None
    job.together(lambda: check_newcomers(experiment.config))
    needs, mixing = experiment.algorithm.needs, experiment.schedule.mixing(done)
    here = {agent.id: agent for agent in experiment.agents}
    world.purpose = "the models of new agents"
    missed = 0.0
    for agent in new:
        mean = mean_beginning(
            world,
            experiment.algorithm,
            experiment.objective.policy,
            experiment.agents,
            models_for(needs, mixing, agent, held),
        )
        missed = max(missed, mean.missed)
        if agent in here:
            here[agent].params.shared.copy_(mean.model)
    if needs.on_loss == "restarts":
        restart(world, experiment.algorithm, experiment.agents, done)
    history = experiment.history
    history.changes.append(Change(done, False, (), {str(a): MEAN for a in new}, grown=True))
    experiment.store.extra = {**experiment.store.extra, HISTORY: history.to_json()}
    event = {
        "round": done + 1,
        "joined": new,
        "before": len(held),
        "agents": world.num_agents,
        **moment(experiment.schedule),
    }
    if missed:
        event["lora/interference"] = missed
    job.say(words(event, needs))
    return event


def words(event: Mapping[str, Any], needs: Needs) -> str:
    """Return one line that says which agents are new, and what they begin from."""
    new = event["joined"]
    start = "the common model" if needs.meets == "server" else "the mean of its neighbours' models"
    start += of_factors(event.get("lora/interference", 0.0))
    again = "; the algorithm restarts on all agents" if needs.on_loss == "restarts" else ""
    return (
        f"{listed(new)} {'are' if len(new) > 1 else 'is'} new beside "
        f"{event['before']} that were saved: each begins at {start}, with a fresh optimizer{again}"
    )
