"""The models of a run that are only measured or exported: one at a time, and their mean."""

from collections.abc import Iterator

from torch import Tensor

from decdpo.checkpoint.models import SavedModels
from decdpo.comm.world import World
from decdpo.metrics.evaluation import mean_vector
from decdpo.params.flat import FlatParams
from decdpo.run import Agent
from decdpo.session.experiment import Experiment


def saved_models(experiment: Experiment, round: int | None = None) -> "MeasuredModels":
    """Return the models of the newest checkpoint of a run, or of one ``round``. Collective.

    experiment : prepared to be measured.

    Raises ``CheckpointError`` if there is none that is whole and of these agents, model and data.
    """
    state = experiment.agents[0].state
    saved = experiment.store.models(state.x, state.running, round=round)
    return MeasuredModels(experiment.world, experiment.agents, saved)


class MeasuredModels:
    """The models of the agents in one checkpoint, read from the disk whenever they are needed.

    agents : the local ones, which share one vector. Memory: that vector, the mean if it is asked
    for, and a block of each agent while it is made; no state of an optimizer or algorithm.

    round : rounds completed when they were saved.
    """

    def __init__(self, world: World, agents: list[Agent], saved: SavedModels) -> None:
        self.round = saved.round
        self._world = world
        self._agents = agents
        self._saved = saved

    def take(self, agent: Agent) -> None:
        """Read the model of a local agent into the vector of all; valid until the next call."""
        self._saved.read(agent.id, agent.state.x, agent.state.running)

    def each(self) -> Iterator[Agent]:
        """Yield the local agents in ascending id, each with its own model."""
        for agent in self._agents:
            self.take(agent)
            yield agent

    def mean(self) -> FlatParams:
        """Return the mean of all models (P,), as ``evaluation.average_model`` does. Collective."""
        first = self._agents[0]
        like = first.params
        if self._world.num_agents == 1 and not like.layout.has_personal:
            self.take(first)
            return like

        def read(agent: int, part: slice) -> Tensor:
            return self._saved.part(agent, like.data, part)

        return like.beside(mean_vector(self._world, like.data, like.layout.num_shared, read))

    def close(self) -> None:
        """Close the checkpoint."""
        self._saved.close()
