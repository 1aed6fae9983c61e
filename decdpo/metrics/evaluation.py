"""What a model is measured by: the average model, its gradient, its held-out pairs. Collective.

Sums over agents go in ascending agent id, so that they have the same bits for any placement.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from decdpo.comm.world import World
from decdpo.errors import DataError
from decdpo.params.flat import FlatParams
from decdpo.policies.objective import Objective
from decdpo.policies.stats import Stats
from decdpo.rng import Stream, generator
from decdpo.run import Agent, Run

BLOCK = 1 << 22
"""Values of a vector that are summed at a time: float64 takes twice the room of float32."""

FIRST_PAIRS = 8
"""Training pairs of each agent that are looked at first for one that has a gradient."""


def average_model(world: World, agents: list[Agent]) -> FlatParams:
    """Return x_bar = mean_i x_i (P,), on the device of the agents. Collective.

    Only shared parameters leave an agent: the personal ones are 0 in what is returned, and
    ``Agent.batch`` puts each agent's own in their place. Its gradient buffer is that of the agents.
    The mean of a single agent is its own vector, not a copy.
    """
    like = agents[0].params
    if world.num_agents == 1 and not like.layout.has_personal:
        return like
    shared = {a.id: a.params.shared for a in agents}

    def read(agent: int, part: slice) -> Tensor:
        return shared[agent][part]

    return like.beside(mean_vector(world, like.data, like.layout.num_shared, read, stays=True))


def mean_vector(
    world: World,
    like: Tensor,
    num_shared: int,
    read: Callable[[int, slice], Tensor],
    *,
    stays: bool = False,
) -> Tensor:
    """Return mean_i x_i (P,) over the shared prefix, with zeros after it. Collective.

    like : (P,) whose type and device it has. read : returns a slice of a local agent's vector;
    stays : whether that stays as it is while the next agent's is read.

    It is summed block by block, so that no wide copy of a whole vector exists, nor many blocks
    where a process hosts many agents.
    """
    mean = torch.zeros_like(like)
    most = max(len(world.members.agents_of(rank)) for rank in world.members.ranks)
    step = max(BLOCK // most, BLOCK // 64)
    for lo in range(0, num_shared, step):
        part = slice(lo, min(lo + step, num_shared))
        found = ((a, _array(read(a, part))) for a in world.local_agents)
        total = world.sum(dict(found) if stays else found)
        mean[part] = torch.from_numpy(total / world.num_agents).to(mean)
    return mean


def mean_of(world: World, agents: Sequence[Agent], some: Sequence[int]) -> Tensor:
    """Return the mean of the shared parameters of ``some`` agents (M,). Collective.

    agents : those of this process, of which some may be among them. That of one is its own bits.
    """
    like = agents[0].params.shared
    mean = torch.zeros_like(like)
    for lo in range(0, like.numel(), BLOCK):
        part = slice(lo, min(lo + BLOCK, like.numel()))
        mine = {a.id: _array(a.params.shared[part]) for a in agents}
        total = world.sum({i: x if i in some else np.zeros_like(x) for i, x in mine.items()})
        mean[part] = torch.from_numpy(total / len(some)).to(mean)
    return mean


def initial_model(run: Run) -> FlatParams:
    """Return the model (P,) that every agent began from; its gradient buffer is the agents'.

    Before the first round it is an agent's own vector, not a copy.
    """
    like = run.agents[0].params
    if run.next_round == 0:
        return like
    return like.beside(run.objective.policy.initial())


def squared_lengths(agents: list[Agent], model: FlatParams | None = None) -> dict[int, np.ndarray]:
    """Return ||x_i||^2 (1,) of every local agent, or of ``model`` in the place of each x_i."""
    return {a.id: _squared_norm((model or a.params).data) for a in agents}


def squared_gaps(agents: list[Agent], mean: FlatParams) -> dict[int, np.ndarray]:
    """Return ||x_i - x_bar||^2 (1,) over the shared parameters, of every local agent.

    Their mean over all agents is the consensus distance.
    """
    return {a.id: _squared_norm(a.params.shared, mean.shared) for a in agents}


def _squared_norm(vector: Tensor, other: Tensor | None = None) -> np.ndarray:
    """Return ||vector||^2 (1,), or ||vector - other||^2, block by block in float64."""
    total = 0.0
    blocks = vector.split(BLOCK)
    for place, block in enumerate(blocks):
        if other is not None:
            block = block - other[place * BLOCK :][: len(block)]
        norm = torch.linalg.vector_norm(block, dtype=torch.float64)
        total += float(norm) ** 2
    return np.array([total])


def require_gradient(world: World, objective: Objective, agents: list[Agent]) -> None:
    """Raise ``DataError`` unless some training pair has a gradient at the start. Collective.

    A loss may be flat for one pair, and pairs may cancel one another in a batch: so one pair after
    another is looked at, until one has a gradient. A few of each agent are, as a rule, enough; all
    are looked at only if none of these has one, before a run is refused.
    """
    for few in (FIRST_PAIRS, None):
        found = any(
            bool(agent.params.grad.any())
            for agent in agents
            for rows in _looks(agent.data.train_rows[:few])
            for _ in objective.gradients([agent.batch(rows, agent.params)])
        )
        if any(world.collect({a.id: found for a in agents}).values()):
            return
    fault = DataError(
        "at the start the gradient of every training pair of all agents is exactly 0: nothing "
        "would be learnt",
        "look whether chosen and rejected answers differ for the policy: after max_length, in the "
        "hashed words or in the feature columns (policy.features); whether every weight is 0; "
        "whether what would learn is frozen; and whether the loss is flat there, as with "
        "label_smoothing = 0.5",
    )
    fault.collective = True
    raise fault


def _looks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield each of ``rows`` alone, then the first ones together, for a loss of whole batches."""
    for place in range(rows.size):
        yield rows[place : place + 1]
    yield rows[:64]


def gradient_norm(run: Run, mean: FlatParams, rows: Mapping[int, np.ndarray]) -> float:
    """Return ||grad L(x_bar)||, L the mean over agents of their loss on ``rows``. Collective.

    The gradient is by the shared parameters.
    """
    batches = [agent.batch(rows[agent.id], mean) for agent in run.agents]
    done = zip(run.agents, run.objective.gradients(batches))
    shared = mean.layout.num_shared
    if run.world.num_agents == 1 and shared > BLOCK:
        # There is nothing to be added up, for which a wide vector would be needed.
        for _ in done:
            pass
        return float(np.sqrt(_squared_norm(mean.grad[:shared])[0]))
    total = run.world.sum((agent.id, _array(mean.grad[:shared])) for agent, _ in done)
    return float(np.linalg.norm(total)) / run.world.num_agents


def _array(vector: Tensor) -> np.ndarray:
    """Return ``vector`` on the CPU, in a type that numpy knows; a view if it may."""
    vector = vector.detach().cpu()
    wide = vector if vector.dtype in (torch.float32, torch.float64) else vector.float()
    array: np.ndarray = wide.numpy()
    return array


class HeldOut:
    """The held-out pairs of the local agents, or a seeded part of them.

    pairs, gradient_pairs : of each agent, held out and of training; 0 is all.
    gradient : whether the gradient norm on the latter is measured.
    """

    def __init__(
        self, agents: list[Agent], seed: int, pairs: int, gradient_pairs: int, gradient: bool = True
    ) -> None:
        self.gradient = gradient
        self.rows: dict[int, np.ndarray] = {}
        self.gradient_rows: dict[int, np.ndarray] = {}
        self._drawn = seed, pairs, gradient_pairs
        for agent in agents:
            self.add(agent)

    def add(self, agent: Agent) -> None:
        """Measure a local ``agent`` that has come, too."""
        seed, pairs, gradient_pairs = self._drawn
        self.rows[agent.id] = _pick(seed, agent, heldout=True, at_most=pairs)
        self.gradient_rows[agent.id] = _pick(seed, agent, heldout=False, at_most=gradient_pairs)

    def training(self, run: Run, model: FlatParams) -> dict[int, Stats]:
        """Evaluate ``model`` on the training pairs of every local agent that gradients are of."""
        batches = [a.batch(self.gradient_rows[a.id], model) for a in run.agents]
        return {a.id: s for a, s in zip(run.agents, run.objective.evaluations(batches))}

    def norm(self, run: Run, mean: FlatParams) -> float | None:
        """Return the gradient norm of the average model, None if it is not measured. Collective."""
        return gradient_norm(run, mean, self.gradient_rows) if self.gradient else None

    def both(self, run: Run, mean: FlatParams) -> tuple[dict[int, Stats], dict[int, Stats]]:
        """Evaluate every local agent's held-out pairs by its own model, and by the average one."""
        own = self._evaluate(run, {a.id: a.params for a in run.agents})
        # That of a single agent is its own, by which nothing is scored again.
        return own, own if mean is run.agents[0].params else self.average(run, mean)

    def average(self, run: Run, mean: FlatParams) -> dict[int, Stats]:
        """Evaluate the average model on every local agent's held-out pairs."""
        return self._evaluate(run, {a.id: mean for a in run.agents})

    def _evaluate(self, run: Run, models: Mapping[int, FlatParams]) -> dict[int, Stats]:
        batches = [a.batch(self.rows[a.id], models[a.id]) for a in run.agents]
        return {a.id: s for a, s in zip(run.agents, run.objective.evaluations(batches))}


def _pick(seed: int, agent: Agent, *, heldout: bool, at_most: int) -> np.ndarray:
    """Return sorted shard rows: all of one part, or ``at_most`` seeded ones of it."""
    first, last = 0, agent.data.num_train
    if heldout:
        first, last = last, last + agent.data.num_heldout
    rows = np.arange(first, last)
    if 0 < at_most < rows.size:
        rng = generator(seed, Stream.HOLDOUT, agent.id, int(heldout))
        rows = np.sort(rng.choice(rows, at_most, replace=False))
    return rows


def pooled(world: World, stats: Mapping[int, Stats]) -> Stats:
    """Add up the agents' statistics, the same bits on every process. Collective."""
    names = next(iter(stats.values())).names
    return Stats(world.sum({i: s.values for i, s in stats.items()}), names)


def pool(world: World, *columns: Mapping[int, np.ndarray]) -> list[np.ndarray]:
    """Add up several arrays (K,) per agent, one for each column, in one sum. Collective."""
    total = world.sum({i: np.concatenate([column[i] for column in columns]) for i in columns[0]})
    sizes = [next(iter(column.values())).size for column in columns]
    return np.split(total, np.cumsum(sizes)[:-1])
