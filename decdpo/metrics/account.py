"""What a start of a run has done and what it took, on this process and on all together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.work import Sizes, Work, known_peak, step_work
from decdpo.run import Run
from decdpo.timing import spread


@dataclass
class Account:
    """What this process has done since it began to train.

    work : of the local steps. agent_steps : local steps of its agents, hosted : those that these
    could have taken. present : those of all agents that were not lost. rounds : done. agents : of
    all processes, when most of them took part.
    """

    work: Work = field(default_factory=Work)
    agent_steps: int = 0
    hosted: int = 0
    present: int = 0
    rounds: int = 0
    agents: int = 0
    began: float = field(default_factory=perf_counter)

    def add(self, run: Run, work: Work) -> None:
        """Add a round, whose local steps were ``work``."""
        self.work += work
        self.rounds += 1
        self.agents = max(self.agents, run.world.num_agents)
        self.hosted += len(run.agents) * run.local_steps
        self.present += run.world.num_agents * run.local_steps
        busy = sum(1 for agent in run.agents if agent.stats.count)
        self.agent_steps += busy * run.local_steps

    def close(self, run: Run, redone: int) -> dict[str, Any]:
        """Return what all processes have done, for ``report.end_table``. Collective.

        redone : rounds that an earlier start had done after its last checkpoint. goodput : local
        steps of agents by those that all agents could have taken in all these rounds, where those
        of lost agents count as far as they were there. imbalance :
        seconds computed by the busiest process, by the mean of all.
        """
        world, exchange = run.world, run.exchange
        sent = 0 if exchange is None else exchange.counters.bytes_sent
        mine = {
            "seconds": perf_counter() - self.began,
            "parts": run.parts.seconds,
            "pairs": self.work.pairs,
            "tokens": self.work.logical,
            "flops": self.work.flops,
            "could": could(run, self.work, run.parts.seconds["compute"]),
            "agent_steps": self.agent_steps,
            "hosted": self.hosted,
            "bytes": sent,
        }
        found = world.collect({a.id: mine if a is run.agents[0] else None for a in run.agents})
        places = [place for place in found.values() if place]
        return _together(
            places, self.rounds, redone, run.local_steps * self.agents, self.present
        )


def _together(
    places: list[Mapping[str, Any]], rounds: int, redone: int, round_steps: int, present: int
) -> dict[str, Any]:
    """Return what the processes of ``places`` did.

    round_steps : agent-steps of a whole round. present : see ``Account``; what a lost process did
    before is taken to be like what the others did.
    """
    seconds = max(place["seconds"] for place in places)
    parts = spread([place["parts"] for place in places])
    total = {
        key: sum(place[key] for place in places)
        for key in ("pairs", "tokens", "flops", "could", "agent_steps", "hosted", "bytes")
    }
    possible = (rounds + redone) * round_steps
    useful = present * total["agent_steps"] / max(total["hosted"], 1)
    _, mean, most = parts["compute"]
    rate = 1 / seconds if seconds > 0 else 0.0
    return {
        "processes": len(places),
        "rounds": rounds,
        "redone_rounds": redone,
        "seconds": round(seconds, 3),
        "parts": parts,
        "pairs_per_second": round(total["pairs"] * rate, 3),
        "tokens_per_second": round(total["tokens"] * rate, 1) if total["tokens"] else None,
        "mfu": round(total["flops"] / total["could"], 4) if total["could"] else None,
        "bytes_between_processes": total["bytes"],
        "goodput": round(useful / possible, 4) if possible else None,
        "imbalance": round(most / mean, 3) if mean > 0 else None,
    }


def round_work(run: Run, round: int) -> Work:
    """Return the work of this process's local steps of ``round``."""
    # An agent that takes no part in a round has the statistics of no pairs.
    busy = [agent for agent in run.agents if agent.stats.count]
    policy = run.objective.policy if busy else None
    if not isinstance(policy, CausalLM):
        return Work(sum(agent.stats.count for agent in busy))
    sizes, shared = Sizes.of(policy.scorer.module), isinstance(policy.scorer, PackedLM)
    total = Work()
    for agent in busy:
        for step in run.steps(agent.id, round):
            rows = agent.sampler.rows(step, run.batch_size)
            if len(rows):
                total += step_work(sizes, agent.data.tokens, rows, shared=shared)
    return total


def could(run: Run, work: Work, seconds: float) -> float:
    """Return the operations that this process could have done in ``seconds``; 0 if unknown."""
    policy = run.objective.policy if work.flops else None
    peak = known_peak(policy.device, policy.dtype) if isinstance(policy, CausalLM) else None
    return 0.0 if peak is None else peak * seconds
