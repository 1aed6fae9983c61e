"""Which agent holds which pair, and which pairs are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decdpo.errors import DataError
from decdpo.rng import Stream, generator

KINDS = ("iid", "contiguous", "by:COLUMN", "dirichlet:ALPHA", "dirichlet:ALPHA:COLUMN")


@dataclass(frozen=True)
class Partition:
    """A rule for dealing pairs to agents.

    kind : "iid", "contiguous", "by" or "dirichlet". column : whose values matter; None for a
    Dirichlet partition by the topic of the prompts. alpha : concentration of the Dirichlet draws.
    """

    kind: str
    column: str | None = None
    alpha: float = 0.0


def parse_partition(text: str) -> Partition:
    """Return the rule that ``text`` names: one of ``KINDS``.

    Raises ``DataError`` for anything else, or an alpha that is not positive.
    """
    kind, _, rest = text.partition(":")
    if kind in ("iid", "contiguous") and not rest:
        return Partition(kind)
    if kind == "by" and rest:
        return Partition("by", rest)
    if kind == "dirichlet" and rest:
        number, _, column = rest.partition(":")
        try:
            alpha = float(number)
        except ValueError:
            alpha = -1.0
        if not 0 < alpha < float("inf"):
            raise DataError(
                f"partition {text!r}: alpha {number!r} is not a positive number",
                "give for example dirichlet:0.5",
            )
        return Partition("dirichlet", column or None, alpha)
    raise DataError(f"unknown partition {text!r}", f"use one of {', '.join(KINDS)}")


def iid(n: int, agents: int, seed: int) -> np.ndarray:
    """Return the (n,) agent of each pair: a random, nearly equal deal."""
    owner = np.empty(n, np.int64)
    owner[generator(seed, Stream.PARTITION).permutation(n)] = contiguous(n, agents)
    return owner


def contiguous(n: int, agents: int) -> np.ndarray:
    """Return the (n,) agent of each pair: nearly equal runs in source order."""
    return np.arange(n) * agents // max(n, 1)


def dirichlet(labels: np.ndarray, agents: int, alpha: float, seed: int) -> np.ndarray:
    """Return the (n,) agent of each pair: every label is dealt out by its own Dirichlet draw.

    labels : (n,) int codes. For each label, shares q ~ Dirichlet(alpha, ..., alpha) over the agents
    are drawn and its shuffled pairs are cut at the cumulative shares (Yurochkin et al., "Bayesian
    nonparametric federated learning of neural networks", 2019). Small alpha: unlike agents.
    """
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rng = generator(seed, Stream.PARTITION, agent=int(label) + 1)
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(agents, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for agent, part in enumerate(np.split(rows, cuts)):
            owner[part] = agent
    return owner


def by_value(
    codes: np.ndarray, names: Sequence[str], agents: int | None
) -> tuple[np.ndarray, list[str]]:
    """Return the (n,) agent of each pair, and the value each agent stands for.

    Every value of the column is one agent, in ascending order of the values; if ``agents`` is less
    than the number of values, the values with most pairs become agents and the pairs of the others
    get owner -1 (left out).

    codes : (n,) int, index into ``names``.

    Raises ``DataError`` if there are fewer values than agents.
    """
    agent_of, kept = largest_values(np.bincount(codes, minlength=len(names)), names, agents)
    return agent_of[codes], kept


def largest_values(
    sizes: np.ndarray, names: Sequence[str], agents: int | None
) -> tuple[np.ndarray, list[str]]:
    """Return the agent of each value of a column (-1: none), and the values that are agents.

    sizes : pairs of each value. ``agents``, and what is raised, as in ``by_value``.
    """
    present = [code for code in range(len(names)) if sizes[code]]
    if agents is not None and agents > len(present):
        raise DataError(
            f"{agents} agents, but the column has only {len(present)} values",
            f"use --agents {len(present)}, or leave --agents out",
        )
    largest = sorted(present, key=lambda code: (-sizes[code], _order(names[code])))[:agents]
    kept = sorted(largest, key=lambda code: _order(names[code]))
    agent_of = np.full(len(names), -1, np.int64)
    agent_of[kept] = np.arange(len(kept))
    return agent_of, [names[code] for code in kept]


def in_order(names: Sequence[str]) -> list[int]:
    """Return the values of a column in ascending order, numbers by their size."""
    return sorted(range(len(names)), key=lambda code: _order(names[code]))


def limited(
    owner: np.ndarray, held_out: np.ndarray, agents: int, most: int, seed: int
) -> np.ndarray:
    """Return, ascending, at most ``most`` training and as many held-out pairs of each agent.

    owner : (n,) agent of each pair, -1 for none. held_out : (n,) bool.
    """
    sides = np.where(owner < 0, -1, 2 * owner + held_out)
    order = np.argsort(sides, kind="stable")
    edges = np.searchsorted(sides[order], np.arange(2 * agents + 1))
    taken = []
    for side in range(2 * agents):
        rows = order[edges[side] : edges[side + 1]]
        if len(rows) > most:
            rng = generator(seed, Stream.PARTITION, side, round=6)
            rows = rng.choice(rows, most, replace=False)
        taken.append(rows)
    return np.sort(np.concatenate(taken))


def _order(name: str) -> tuple[bool, int, str]:
    """Sort numbers by value and before words."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def hold_out(
    owner: np.ndarray, agents: int, fraction: float, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the (n,) bool mask of held-out pairs.

    Without groups, each agent holds out ``fraction`` of its pairs, rounded, at least one, as long
    as one is left to train on; at 0 nothing is held out. With groups, whole groups are held out
    over all agents, as many as come closest to ``fraction`` of the pairs: nothing of a held-out
    group is seen in training by anyone.

    owner : (n,) agent of each pair, -1 for none. groups : (n,) int codes, or None.

    Raises ``DataError`` for a fraction outside [0, 1), or if all pairs are one group.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"holdout {fraction} is not in [0, 1)", "use for example --holdout 0.1")
    mask = np.zeros(len(owner), bool)
    if fraction == 0:
        return mask
    if groups is None:
        rows_of = np.argsort(owner, kind="stable")
        edges = np.searchsorted(owner[rows_of], np.arange(agents + 1))
        for agent in range(agents):
            rows = rows_of[edges[agent] : edges[agent + 1]]
            count = min(max(int(fraction * len(rows) + 0.5), 1), len(rows) - 1)
            rng = generator(seed, Stream.HOLDOUT, agent)
            mask[rng.permutation(rows)[: max(count, 0)]] = True
        return mask
    used = owner >= 0
    sizes = np.bincount(groups[used])
    present = np.flatnonzero(sizes)
    if len(present) < 2:
        raise DataError("all pairs are one group, so none can be held out", "use another --group")
    order = generator(seed, Stream.HOLDOUT).permutation(present)
    totals = np.cumsum(sizes[order])[:-1]
    count = int(np.argmin(np.abs(totals - fraction * sizes.sum()))) + 1
    return np.isin(groups, order[:count]) & used


def require_training(counts: np.ndarray, names: Sequence[str]) -> None:
    """Raise ``DataError`` naming the agents that would have no training pair.

    counts : (agents,) number of training pairs of each. names : of the agents, "" for none.
    """
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        shown = ", ".join(f"{a} ({names[a]})" if names[a] else str(a) for a in empty[:10])
        shown += ", ..." if len(empty) > 10 else ""
        raise DataError(
            f"{len(empty)} of {len(counts)} agents would have no training pair: {shown}",
            "use fewer --agents, a smaller --holdout, a larger Dirichlet alpha or another --seed",
        )
