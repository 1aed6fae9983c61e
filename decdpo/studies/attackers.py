"""Agents of a study that send lies: drawn and seeded, in the exchange of one process.

Training itself knows nothing of them. An attacker trains and mixes like everybody else, on what it
would honestly have sent, so that its own model stays sound; its neighbours receive the lie.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from decdpo.comm.late.staleness import Around
from decdpo.comm.mixing import Received
from decdpo.comm.world import Exchange
from decdpo.metrics.evaluation import HeldOut
from decdpo.rng import Stream, generator
from decdpo.run import Run
from decdpo.session.job import Job
from decdpo.studies.cells import Memory, Training, read_result, write_result
from decdpo.studies.table import Row as Record
from decdpo.topology.row import Row

HONEST = "honest.json"
"""What a cell measured of its honest agents."""


def flipped(message: Tensor, agent: int, round: int, seed: int) -> Tensor:
    """Return the message (M,) with all signs flipped, four times as long."""
    return -4 * message


def scaled(message: Tensor, agent: int, round: int, seed: int) -> Tensor:
    """Return the message (M,), three times as long."""
    return 3 * message


def noise(message: Tensor, agent: int, round: int, seed: int) -> Tensor:
    """Return Gaussian noise in place of the message (M,), ten times as long."""
    drawn = generator(seed, Stream.ATTACK, agent, round + 1).standard_normal(len(message))
    size = 10 * float(torch.linalg.vector_norm(message)) / len(message) ** 0.5
    return size * torch.from_numpy(drawn).to(message.dtype)


LIES: dict[str, Callable[[Tensor, int, int, int], Tensor]] = {
    "noise": noise, "flipped": flipped, "scaled": scaled
}  # fmt: skip
"""What attackers send, by name; None where nobody lies."""


def attackers_of(seed: int, num_agents: int, count: int) -> frozenset[int]:
    """Return ``count`` agents drawn from all."""
    chosen = generator(seed, Stream.ATTACK).choice(num_agents, count, replace=False)
    return frozenset(int(agent) for agent in chosen)


class Attacked(Around):
    """An exchange in which ``attackers`` send lies of one kind."""

    def __init__(self, inner: Exchange, attackers: frozenset[int], lie: str, seed: int) -> None:
        super().__init__(inner)
        self._attackers = attackers
        self._lie = LIES[lie]
        self._seed = seed
        self._truth: dict[int, Tensor] = {}

    def start(self, agent: int, round: int, row: Row, message: Tensor | None) -> None:
        """Send ``message`` (M,), or what an attacker makes of it."""
        if message is not None and agent in self._attackers:
            self._truth[agent] = message.clone()
            message = self._lie(message, agent, round, self._seed)
        self._inner.start(agent, round, row, message)

    def inbox(self, agent: int, round: int) -> Received:
        """Return what ``agent`` receives; an attacker mixes with what it did not say."""
        inbox = self._inner.inbox(agent, round)
        assert isinstance(inbox, Received)
        return replace(inbox, sent=self._truth[agent]) if agent in self._truth else inbox


@dataclass(frozen=True)
class Honest:
    """What ``HONEST`` holds: means over the honest agents' held-out pairs.

    accuracy, loss : of their own models. average_accuracy : of the mean of their models.
    """

    accuracy: float
    loss: float
    average_accuracy: float


@dataclass(frozen=True)
class AttackedTraining(Training):
    """A training run among whose agents are attackers; its last record is of the honest ones too.

    lie : one of ``LIES``. attackers : how many.
    """

    lie: str = "none"
    attackers: int = 0

    def identity(self) -> str:
        """Return the configuration and the attack."""
        return f"{super().identity()} {self.lie} by {self.attackers}"

    def finished(self, folder: Path) -> bool:
        """Say whether the honest agents were measured."""
        return super().finished(folder) and (folder / HONEST).exists()

    def after(self, run: Run, folder: Path) -> None:
        """Measure the honest agents."""
        liars = self._liars(run.world.num_agents)
        honest = [agent for agent in run.agents if agent.id not in liars]
        rows = HeldOut(honest, self.config.run.seed, 0, 0, gradient=False).rows
        own = [agent.batch(rows[agent.id]) for agent in honest]
        models = torch.stack([agent.params.data for agent in honest])
        mean = honest[0].params.beside(models.mean(dim=0))
        shared = [agent.batch(rows[agent.id], mean) for agent in honest]
        means = []
        for batches in (own, shared):
            total = run.objective.no_stats()
            for stats in run.objective.evaluations(batches):
                total += stats
            means.append(total.means())
        accuracy = "rewards/accuracies"
        found = Honest(means[0][accuracy], means[0]["loss"], means[1][accuracy])
        write_result(folder / HONEST, asdict(found))

    def records(self, folder: Path, memory: Memory) -> list[Record]:
        """Return the records of the run, the last one with what the honest agents came to."""
        records = super().records(folder, memory)
        found = read_result(folder / HONEST, Honest)
        records[-1] |= {f"honest/{key}": value for key, value in asdict(found).items()}
        return records

    def _prepare(self, job: Job, folder: Path, memory: Memory) -> Run:
        run = super()._prepare(job, folder, memory)
        liars = self._liars(run.world.num_agents)
        if liars:
            assert run.exchange is not None
            run.exchange = Attacked(run.exchange, liars, self.lie, self.config.run.seed)
        return run

    def _liars(self, num_agents: int) -> frozenset[int]:
        return attackers_of(self.config.run.seed, num_agents, self.attackers)
