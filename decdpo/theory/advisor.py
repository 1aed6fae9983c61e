"""The advisor: which method, graph, local steps and step size the bounds prefer on a budget.

Every candidate gets as many rounds as the budget pays for, the step size that makes its bound
smallest (``bounds.best_step``), and is ranked by that bound. What a round costs:

    DecDPO   messages: one for every arc of the graph; an agent waits for its busiest neighbour's
    FedDPO   messages: S up and n down, all of them through the server

and E gradients, which all agents take at the same time. A bound is a worst case: its order of the
candidates is advice, its value is not a prediction of what a run will measure.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from decdpo.errors import ConfigError, TopologyError
from decdpo.theory.bounds import Bound, Problem, best_step, decentralized, federated
from decdpo.topology.schedule import Topology, make_schedule

MAX_ROUNDS = 10**12


@dataclass(frozen=True)
class Budget:
    """What may be spent: rounds, or bytes of all agents together, or seconds; exactly one of them.

    seconds_per_byte : of one agent's link. seconds_per_gradient : of one batch. Both count only
    against seconds; at least one must be positive then.

    Raises ``ConfigError`` for a budget that says nothing, or too much.
    """

    rounds: int | None = None
    bytes: float | None = None
    seconds: float | None = None
    seconds_per_byte: float = 0.0
    seconds_per_gradient: float = 0.0

    def __post_init__(self) -> None:
        given = [v for v in (self.rounds, self.bytes, self.seconds) if v is not None]
        if len(given) != 1 or not given[0] > 0 or not math.isfinite(given[0]):
            raise ConfigError(
                f"a budget of rounds = {self.rounds}, bytes = {self.bytes}, seconds = "
                f"{self.seconds}",
                "give exactly one of them, a positive number",
            )
        costs = (self.seconds_per_byte, self.seconds_per_gradient)
        if min(costs) < 0 or not all(map(math.isfinite, costs)):
            raise ConfigError(f"costs of {costs} seconds", "give numbers of at least 0")
        if self.seconds is not None and not any(costs):
            raise ConfigError(
                "a budget of seconds, but neither a byte nor a gradient takes any",
                "give the seconds of a byte, of a gradient, or both",
            )

    def rounds_for(self, cost: "Cost") -> int:
        """Return how many rounds of ``cost`` the budget pays for, possibly 0."""
        if self.rounds is not None:
            return self.rounds
        if self.bytes is not None:
            each, total = float(cost.bytes), self.bytes
        else:
            assert self.seconds is not None
            each, total = self.seconds_of(cost), self.seconds
        return int(total / each) if total < each * MAX_ROUNDS else MAX_ROUNDS

    def seconds_of(self, cost: "Cost") -> float:
        """Return the seconds of one round."""
        link, gradient = self.seconds_per_byte, self.seconds_per_gradient
        return cost.busiest * link + cost.gradients * gradient


@dataclass(frozen=True)
class Cost:
    """Of one round: bytes of all agents together, of the busiest link, gradients of an agent."""

    bytes: int
    busiest: int
    gradients: int

    @classmethod
    def of_gossip(cls, schedule: Topology, message_bytes: int, local_steps: int = 1) -> "Cost":
        """Return the cost of DecDPO on ``schedule``: a message on every arc."""
        degree = schedule.num_sources
        total, most = int(degree.sum()), int(degree.max())
        return cls(total * message_bytes, most * message_bytes, local_steps)

    @classmethod
    def of_server(
        cls, num_agents: int, participants: int, message_bytes: int, local_steps: int = 1
    ) -> "Cost":
        """Return the cost of FedDPO: S messages up and n down, all through the server."""
        through = (participants + num_agents) * message_bytes
        return cls(through, through, local_steps)


@dataclass(frozen=True)
class Choice:
    """One candidate with its best step size.

    method : "dsgd" (DecDPO) or "fedavg" (FedDPO). graph : its name, "" for FedDPO. local_steps : E.
    participants : S. rho : of one round (``per_round``). rounds : that the budget pays for. bytes,
    seconds : spent in them, seconds 0 where the budget has none. bound : at the best step.
    """

    method: str
    graph: str
    local_steps: int
    participants: int
    rho: float
    rounds: int
    bytes: float
    seconds: float
    bound: Bound

    def overrides(self) -> list[str]:
        """Return the ``section.key=value`` settings that make a configuration this choice.

        A configuration of FedDPO must not have a section [topology].
        """
        settings = [
            f"run.rounds={self.rounds}",
            f"algorithm.kind={self.method}",
            f"algorithm.local_steps={self.local_steps}",
            f"optim.lr={self.bound.step:.6g}",
        ]
        if self.method == "fedavg":
            return [*settings, f"algorithm.participants={self.participants}"]
        return [*settings, f"topology.graph={self.graph}", "topology.weights=auto"]

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the bound's total and ``overrides`` as JSON values."""
        found = asdict(self)
        found["bound"] = {**found["bound"], "total": self.bound.total}
        return {**found, "set": self.overrides()}


def advise(
    problem: Problem,
    budget: Budget,
    topologies: Iterable[tuple[str, Topology]],
    *,
    message_bytes: int,
    local_steps: Sequence[int] = (1, 2, 4, 8, 16),
    participants: Sequence[int] | None = None,
) -> list[Choice]:
    """Return the candidates that the budget pays for, the best first.

    Parameters
    ----------
    topologies : (name, schedule) of the graphs for DecDPO, n agents each.
    message_bytes : of one message.
    local_steps : values of E. participants : values of S for FedDPO; None: n, n/2, n/4, n/8;
    without any there is no FedDPO.
    """
    n = problem.num_agents
    if participants is None:
        participants = sorted({max(n // k, 1) for k in (1, 2, 4, 8)}, reverse=True)
    found = []
    for steps in local_steps:
        for chosen in participants:
            cost = Cost.of_server(n, chosen, message_bytes, steps)
            bound = partial(federated, problem, local_steps=steps, participants=chosen)
            found += _choice("fedavg", "", steps, chosen, 0.0, cost, budget, bound)
        for name, schedule in topologies:
            cost, rho = Cost.of_gossip(schedule, message_bytes, steps), per_round(schedule)
            bound = partial(decentralized, problem, local_steps=steps, rho=rho)
            found += _choice("dsgd", name, steps, n, rho, cost, budget, bound)
    return sorted(found, key=lambda c: (c.bound.total, c.local_steps, c.method, c.graph))


def suitable(graphs: Iterable[str], num_agents: int) -> list[tuple[str, Topology]]:
    """Return (name, schedule) of those graphs that there are for so many agents."""
    found = []
    for graph in graphs:
        try:
            found.append((graph, make_schedule(graph, "auto", num_agents)))
        except TopologyError:
            continue
    return found


def per_round(schedule: Topology) -> float:
    """Return the rho that stands for one round in the bounds: 1 - (1 - rho_tau) / tau.

    tau : the period. rho_tau : what it contracts. A bound adds up what all rounds before have left
    (``bounds``): with weights that repeat, up to tau rounds' differences in full, and these sums
    are those of a matrix with the gap (1 - rho_tau) / tau. rho_tau^(1/tau) would be 0 for the
    one-peer exponential graph of 2^k agents, though one round of it may not contract at all.
    """
    return float(1 - schedule.spectral_gap / schedule.period)


def _choice(
    method: str,
    graph: str,
    steps: int,
    participants: int,
    rho: float,
    cost: Cost,
    budget: Budget,
    bound: Any,
) -> list[Choice]:
    rounds = budget.rounds_for(cost)
    if rounds < 1:
        return []
    best = best_step(lambda eta: bound(eta, rounds))
    seconds = rounds * budget.seconds_of(cost)
    return [
        Choice(
            method, graph, steps, participants, rho, rounds, float(rounds * cost.bytes), seconds,
            best,
        )
    ]  # fmt: skip
