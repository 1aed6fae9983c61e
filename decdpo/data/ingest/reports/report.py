"""What a sharding did with its sources: what was read, dropped, held out, and how agents differ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from decdpo.data.ingest.formats.answers import Answers, meaning
from decdpo.data.ingest.reports import numbers
from decdpo.data.ingest.reports.leaks import repeats
from decdpo.data.ingest.reports.survey import Survey, distinct
from decdpo.rng import Stream, generator

ROWS_SHOWN = 20
ODD_ROWS_SHOWN = 5
LABELS, LABEL_WIDTH = 50, 40
"""Different labels that are counted apart, and characters of each that are kept."""

_QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


class Drops:
    """Judgments that could not be used, by reason, with the first source rows of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[tuple[str, int]]] = {}

    def add(self, reason: str, row: int, file: str = "") -> None:
        """Count one judgment of row ``row`` of ``file``, which is "" if there is one file."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        places = self._places.setdefault(reason, [])
        if len(places) < ROWS_SHOWN and (file, row) not in places[-1:]:
            places.append((file, row))

    @property
    def total(self) -> int:
        """Number of judgments dropped."""
        return sum(self._counts.values())

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return reason -> {count, rows}, most frequent first; with several files also files."""
        order = sorted(self._counts, key=lambda reason: (-self._counts[reason], reason))
        found: dict[str, dict[str, Any]] = {}
        for reason in order:
            files, rows = zip(*self._places[reason])
            found[reason] = {"count": self._counts[reason], "rows": list(rows)}
            if any(files):
                found[reason]["files"] = list(files)
        return found


class Labels:
    """The verdicts met, what each was taken for, and how often."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._known: dict[tuple[Answers, str], tuple[str, str]] = {}

    def add(self, verdicts: Iterable[Any], where: Answers) -> None:
        """Count some verdicts; beyond ``LABELS`` different ones, as "others"."""
        for verdict in verdicts:
            address = (where, repr(verdict))
            key = self._known.get(address)
            if key is None:
                said = "" if verdict is None else str(verdict).strip()[:LABEL_WIDTH]
                key = (said, meaning(verdict, where))
                if len(self._known) < LABELS:
                    self._known[address] = key
                else:
                    key = ("others", key[1])
            self._counts[key] = self._counts.get(key, 0) + 1

    def summary(self) -> list[dict[str, Any]]:
        """Return label, meaning and count of each, most frequent first."""
        order = sorted(self._counts, key=lambda key: (-self._counts[key], key))
        return [{"label": key[0], "means": key[1], "count": self._counts[key]} for key in order]


def of_pairs(store: Any, texts: Survey, used: np.ndarray) -> dict[str, Any]:
    """Return what the pairs are like: texts, oddities, scores, weights and users.

    store : the ``PairStore`` they are in. texts : its survey. used : (n,) bool, whose agent is.
    """
    columns, written = store.columns(), len(texts.found["blank"]) < len(store)
    odd = {kind: [row for row in rows if used[row]] for kind, rows in texts.found.items()}
    odd["equal_features"] = numbers.equal_features(columns, used)
    if written:
        odd.update(repeats(texts, store.source_rows, store.users.codes, used))
    return {
        "lengths": lengths(store.edges[used]),
        "texts": _distinct(texts, used) if written else None,
        "features": columns["chosen_features"].shape[1] if "chosen_features" in columns else 0,
        "oddities": {
            kind: {"pairs": len(rows), "rows": _first_places(store, rows)}
            for kind, rows in odd.items()
            if rows
        },
        "markers": texts.markers,
        "scores": numbers.scores(columns, used),
        "weights": numbers.weights(columns, used),
        "users": _users(store.users.names, store.users.codes[used]),
        "second_preferred": round(float(store.second[used].mean()), 4),
    }


def _first_places(store: Any, rows: Sequence[int]) -> list[str]:
    """Return the first few different source rows of some pairs, in words."""
    places: dict[str, None] = {}
    for row in rows:
        places[store.place(row)] = None
        if len(places) == ODD_ROWS_SHOWN:
            break
    return list(places)


def _distinct(texts: Survey, used: np.ndarray) -> dict[str, int]:
    chosen, rejected = texts.chosen[used], texts.rejected[used]
    return {
        "distinct_prompts": distinct(texts.prompts[used]),
        "distinct_chosen": distinct(chosen),
        "distinct_rejected": distinct(rejected),
        "distinct_answers": distinct(np.concatenate([chosen, rejected])),
    }


def _users(names: Sequence[str], codes: np.ndarray) -> dict[str, int] | None:
    """Return how many people judged, and how many pairs name nobody; None if no pair names one."""
    if not any(names):
        return None
    counts = np.bincount(codes, minlength=len(names))
    without = int(counts[names.index("")]) if "" in names else 0
    return {"distinct": int((counts > 0).sum()) - (without > 0), "without": without}


def lengths(edges: np.ndarray) -> dict[str, dict[str, int]]:
    """Return quantiles of the UTF-8 lengths (bytes) of prompts and answers.

    edges : (n, 4) as in ``PairStore.edges``.
    """
    sizes = np.diff(edges, axis=1)
    return {
        part: {
            name: int(np.quantile(sizes[:, column], q, method="nearest"))
            for name, q in _QUANTILES.items()
        }
        for column, part in enumerate(("prompt", "chosen", "rejected"))
    }


def longer_preferred(edges: np.ndarray) -> float:
    """Return the share of pairs whose longer answer was preferred; equal lengths count half."""
    gain = (edges[:, 2] - edges[:, 1]) - (edges[:, 3] - edges[:, 2])
    return float(np.mean((gain > 0) + 0.5 * (gain == 0))) if len(gain) else 0.5


def mix_distance(owner: np.ndarray, labels: np.ndarray, agents: int) -> float:
    """Return the mean total-variation distance between the agents' label mixes and the whole mix.

    0: every agent holds the same mix of labels; near 1: no agent looks like the whole.
    owner : (n,) agents. labels : (n,) int codes >= 0.
    """
    counts = np.zeros((agents, int(labels.max()) + 1))
    np.add.at(counts, (owner, labels), 1.0)
    held = counts.sum(axis=1) > 0
    mixes = counts[held] / counts[held].sum(axis=1, keepdims=True)
    whole = counts.sum(axis=0) / counts.sum()
    return float(0.5 * np.abs(mixes - whole).sum(axis=1).mean())


def difference(
    owner: np.ndarray, labels: np.ndarray, agents: int, seed: int, what: str
) -> dict[str, Any]:
    """Return how unlike the agents are in their mix of labels.

    ``if_dealt_at_random`` is the same figure after a shuffle of the agents: what small shards alone
    would show.
    """
    shuffled = generator(seed, Stream.PARTITION, round=2).permutation(owner)
    return {
        "of": what,
        "mix_distance": round(mix_distance(owner, labels, agents), 4),
        "if_dealt_at_random": round(mix_distance(shuffled, labels, agents), 4),
    }


def contradictions(rows: np.ndarray, second: np.ndarray) -> dict[str, int] | None:
    """Return how often several judgments of one source row contradict each other.

    rows : (n,) source rows. second : (n,) bool, which of the two answers was preferred.
    None if no row has several judgments.
    """
    _, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    if counts.max(initial=0) < 2:
        return None
    votes = np.bincount(inverse, weights=second)
    several = counts > 1
    split = several & (votes > 0) & (votes < counts)
    return {"rows_with_several": int(several.sum()), "contradicted": int(split.sum())}


def per_agent(
    owner: np.ndarray, held_out: np.ndarray, edges: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per agent: name, training and held-out pairs, share of longer answers."""
    found = []
    for agent, name in enumerate(names):
        rows = np.flatnonzero(owner == agent)
        found.append(
            {
                "agent": agent,
                "name": name,
                "train": int((~held_out[rows]).sum()),
                "held_out": int(held_out[rows].sum()),
                "longer_preferred": round(longer_preferred(edges[rows]), 4),
            }
        )
    return found


def longer_range(agents: Sequence[Mapping[str, Any]], edges: np.ndarray) -> dict[str, float]:
    """Return the share of longer answers preferred: of all pairs, and of the extreme agents."""
    shares = [row["longer_preferred"] for row in agents]
    return {
        "pooled": round(longer_preferred(edges), 4),
        "lowest_agent": min(shares),
        "highest_agent": max(shares),
    }
