"""From ratings to pairs: whose they are, what is held out, and which of the many are taken.

A pair is two ratings by one person of two answers to one prompt, the chosen one at least a gap
above the rejected one. What is held out is decided for ratings first: a pair is held out if both of
its ratings are, a training pair if neither is, and no pair at all otherwise. So an item that is
held out is in no training pair, of everybody or of the person whose own it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from decdpo.data import partition as deal
from decdpo.data.gaps import Gaps, drawn, gaps
from decdpo.data.ingest.formats.answers import Judgment
from decdpo.data.ingest.ratings import Ratings
from decdpo.data.ingest.reports.doubts import OWN_ITEMS
from decdpo.data.ingest.reports.report import ROWS_SHOWN
from decdpo.data.ingest.reports.survey import groups_of
from decdpo.data.ingest.spill import PairStore
from decdpo.data.partition import Partition
from decdpo.data.plan import ITEM, PROMPT, Plan, RatedPlan
from decdpo.data.topics import Topics
from decdpo.errors import DataError
from decdpo.rng import Stream, generator

MOST = 20_000_000
"""Pairs that are dealt out one by one, unless each agent's are those of a column's value."""

_AGAIN = "rated again by the same person"


@dataclass(frozen=True)
class _Kept:
    """The ratings that are used, as arrays of length m; see ``Ratings``."""

    users: np.ndarray
    keys: np.ndarray
    prompts: np.ndarray
    answers: np.ndarray
    values: np.ndarray
    rows: np.ndarray


def fill_pairs(
    ratings: Ratings,
    store: PairStore,
    rule: Partition,
    plan: Plan,
    report: dict[str, Any],
    progress: Callable[[str], None],
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Choose the pairs and write them to ``store``.

    Parameters
    ----------
    rule : the plan's partition.
    report : what it says of the ratings is added.

    Returns
    -------
    The (n,) agent of each pair, the agents' names, and the (n,) bool mask of held-out pairs.

    Raises ``DataError`` if there is no pair, too many, fewer values than agents, or an agent would
    have no training pair.
    """
    rated = plan.rated or RatedPlan()
    first = ratings.drop_repeated()
    kept = _arrays(ratings, first)
    report["rows_kept"] = int(len(np.unique(kept.rows)))
    held, by = _held(ratings, kept, first, rated, plan)
    report["held_out_by"] = by
    # An agent is a value of the column, so that its pairs are numbered one after another.
    place = _places(ratings.keys.names) if rule.kind == "by" else np.zeros(1, np.int64)
    key = place[kept.keys] if rule.kind == "by" else np.zeros(len(held), np.int64)
    block = _blocks(key, held, kept)
    space = gaps(kept.values, block, rated.min_gap)
    together = len(gaps(kept.values, _blocks(key, np.zeros_like(held), kept), rated.min_gap))
    _note(ratings, kept, first, together, together - len(space), rated, report)
    if not len(space):
        raise DataError(
            f"no two ratings of one person and prompt are {rated.min_gap:g} or more apart",
            "check --min-gap, and the columns of user and prompt",
        )
    if rule.kind == "by":
        numbers, owner, names = _by_value(
            ratings, space, block, key, held, place, plan, report
        )
    else:
        numbers, owner, names = _dealt(
            ratings, kept, space, held, rule, plan, report
        )
    higher, lower = space.pairs(numbers)
    _write(ratings, kept, store, higher, lower, progress)
    held_out = held[higher]
    deal.require_training(np.bincount(owner[~held_out], minlength=len(names)), names)
    return owner, names, held_out


def _arrays(ratings: Ratings, first: np.ndarray) -> _Kept:
    return _Kept(
        users=ratings.users.codes[first],
        keys=ratings.keys.codes[first],
        prompts=np.array(ratings.prompt)[first],
        answers=np.array(ratings.answer)[first],
        values=np.array(ratings.values)[first],
        rows=np.array(ratings.rows)[first],
    )


def _held(
    ratings: Ratings,
    kept: _Kept,
    first: np.ndarray,
    rated: RatedPlan,
    plan: Plan,
) -> tuple[np.ndarray, str]:
    """Return the (m,) bool mask of held-out ratings, and by what they are held out."""
    own, group, holdout = rated.own_items, plan.group, plan.holdout
    if own is None and group is None and holdout and len(ratings.prompts) == 1:
        own = holdout
    if own is not None:
        size = f"{own:g}" if own >= 1 else f"{own:.0%}"
        return _own_items(ratings, kept, own, plan.seed), f"{OWN_ITEMS} ({size} of each)"
    if group == ITEM:
        groups, by = groups_of(kept.answers), ITEM
    elif group is None or group == PROMPT:
        groups, by = groups_of(kept.prompts), PROMPT
    else:
        groups, by = ratings.groups.codes[first], f"column {group}"
    everyone = np.zeros(len(kept.values), np.int64)
    return deal.hold_out(everyone, 1, holdout, plan.seed, groups), by


def _own_items(ratings: Ratings, kept: _Kept, own: float, seed: int) -> np.ndarray:
    """Return the mask of each person's own held-out items, two of which are left to train on.

    They depend on the person's name, its items and the seed alone.
    """
    digest = np.frombuffer(b"".join(d[:8] for d in ratings.answers.digests()), np.uint64)
    mask = np.zeros(len(kept.values), bool)
    order = np.lexsort((digest[kept.answers], kept.users))
    edges = np.searchsorted(kept.users[order], np.arange(len(ratings.users.names) + 1))
    for user, name in enumerate(ratings.users.names):
        rows = order[edges[user] : edges[user + 1]]
        items = digest[kept.answers[rows]]
        different = np.unique(items)
        count = int(own) if own >= 1 else int(own * len(different) + 0.5)
        count = max(min(count, len(different) - 2), 0)
        rng = generator(seed, Stream.HOLDOUT, _address(name))
        mask[rows] = np.isin(items, rng.permutation(different)[:count])
    return mask


def _address(name: str) -> int:
    """Return the address of a person's random numbers: it does not depend on who else is there."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _places(names: Sequence[str]) -> np.ndarray:
    """Return the place of each value among all in their order."""
    order = deal.in_order(names)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _blocks(key: np.ndarray, held: np.ndarray, kept: _Kept) -> np.ndarray:
    """Return the (m,) number of each rating's key, side, person and prompt, ascending by these."""
    columns = np.stack([key, held, kept.users, kept.prompts], axis=1).astype(np.int64)
    _, blocks = np.unique(columns, axis=0, return_inverse=True)
    return blocks.reshape(-1)


def _by_value(
    ratings: Ratings,
    space: Gaps,
    block: np.ndarray,
    key: np.ndarray,
    held: np.ndarray,
    place: np.ndarray,
    plan: Plan,
    report: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw the pairs of the agents that have most training pairs."""
    # The last block of each key's training and held-out ratings; -1 before the first.
    last = np.full((len(place), 2), -1, np.int64)
    np.maximum.at(last, (key, held.astype(np.int64)), block)
    flat = np.maximum.accumulate(last.reshape(-1))
    ends = space.upto(block, flat)
    sizes = np.diff(np.concatenate([[0], ends])).reshape(-1, 2)
    agent_of, names = deal.largest_values(sizes[place, 0], ratings.keys.names, plan.agents)
    numbers, owner, over = [], [], 0
    starts = ends - sizes.reshape(-1)
    for code in np.argsort(agent_of, kind="stable"):
        agent = int(agent_of[code])
        if agent < 0:
            continue
        for side in (0, 1):
            total, begin = int(sizes[place[code], side]), int(starts[2 * place[code] + side])
            rng = generator(plan.seed, Stream.PARTITION, _address(names[agent]), round=4 + side)
            taken = begin + drawn(total, plan.pairs_per_agent, rng)
            over += total - len(taken)
            numbers.append(taken)
            owner.append(np.full(len(taken), agent, np.int64))
    left = int(sizes[place[agent_of < 0]].sum())
    report["left_out"] = {"values": int((agent_of < 0).sum()), "pairs": left}
    report["over_limit"] = over
    return np.concatenate(numbers), np.concatenate(owner), names


def _dealt(
    ratings: Ratings,
    kept: _Kept,
    space: Gaps,
    held: np.ndarray,
    rule: Partition,
    plan: Plan,
    report: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Deal all pairs out, and draw those of each agent."""
    agents, most, seed = plan.agents, plan.pairs_per_agent, plan.seed
    assert agents is not None
    total = len(space)
    report["left_out"] = {"values": 0, "pairs": 0}
    if agents > total:
        raise DataError(f"{agents} agents, but {total} pairs", "use fewer --agents")
    if total > MOST:
        raise DataError(
            f"{total:,} pairs are far enough apart among {len(space.order):,} ratings, more than "
            f"{MOST:,} that can be dealt out",
            "raise --min-gap, or make agents of a column: --partition by:COLUMN",
        )
    higher, _ = space.pairs(np.arange(total))
    if rule.kind == "iid":
        owner = deal.iid(total, agents, seed)
    elif rule.kind == "contiguous":
        owner = np.empty(total, np.int64)
        owner[np.argsort(kept.rows[higher], kind="stable")] = deal.contiguous(total, agents)
    else:
        labels = kept.keys if rule.column else _topics(ratings, seed)[kept.prompts]
        owner = deal.dirichlet(labels[higher], agents, rule.alpha, seed)
    if most is None:
        report["over_limit"] = 0
        return np.arange(total), owner, [""] * agents
    taken = deal.limited(owner, held[higher], agents, most, seed)
    report["over_limit"] = int(total - len(taken))
    return taken, owner[taken], [""] * agents


def _topics(ratings: Ratings, seed: int) -> np.ndarray:
    prompts = [ratings.prompts.text(code) for code in range(len(ratings.prompts))]
    return Topics(prompts[:5000], seed)(prompts)


def _note(
    ratings: Ratings,
    kept: _Kept,
    first: np.ndarray,
    together: int,
    between: int,
    rated: RatedPlan,
    report: dict[str, Any],
) -> None:
    """Add what the ratings are like to the report."""
    again = np.array(ratings.rows)[~first]
    if len(again):
        rows = np.unique(again)[:ROWS_SHOWN].tolist()
        report["dropped"][_AGAIN] = {"count": len(again), "rows": rows}
        report["num_dropped"] += len(again)
    values = kept.values
    report["ratings"] = {
        "ratings": len(values),
        "answers": int(len(np.unique(kept.answers))),
        "prompts": int(len(np.unique(kept.prompts))),
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
        "min_gap": rated.min_gap,
        "one_prompt_given": rated.columns.prompt_text is not None,
        "far_enough": together,
        "between": between,
    }


def _write(
    ratings: Ratings,
    kept: _Kept,
    store: PairStore,
    higher: np.ndarray,
    lower: np.ndarray,
    progress: Callable[[str], None],
) -> None:
    for name, rows_before in ratings.files:
        store.start_file(name, rows_before)
    users, keys = ratings.users.names, ratings.keys.names
    prompt, answer = ratings.prompts.text, ratings.answers.text
    for done, (high, low) in enumerate(zip(higher.tolist(), lower.tolist())):
        judgment = Judgment(
            prompt(int(kept.prompts[high])),
            answer(int(kept.answers[high])),
            answer(int(kept.answers[low])),
            user=users[kept.users[high]] or None,
            score_chosen=float(kept.values[high]),
            score_rejected=float(kept.values[low]),
        )
        store.add(judgment, int(kept.rows[high]), keys[kept.keys[high]], "")
        if done and done % 500_000 == 0:
            progress(f"wrote {done:,} of {len(higher):,} pairs")
