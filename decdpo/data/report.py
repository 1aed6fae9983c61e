"""What a sharding did with its sources: what was read, dropped, held out, and how agents differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from decdpo.data.shard import row_of
from decdpo.rng import Stream, generator

ROWS_SHOWN = 20
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


def lines(report: Mapping[str, Any], shown: int = 20) -> Iterator[str]:
    """Yield the report as lines of text; at most ``shown`` agents are listed."""
    for source in report["sources"]:
        yield f"{source['file']}: {source['format']}, {source['rows']:,} rows"
    yield (
        f"rows read {report['rows_read']:,}; judgments {report['judgments']:,}; "
        f"pairs kept {report['pairs']:,}, dropped {report['num_dropped']:,}, "
        f"left out {report['left_out']['pairs']:,}"
    )
    for reason, drop in report["dropped"].items():
        files = drop.get("files") or [""] * len(drop["rows"])
        rows = ", ".join(row_of(row, file) for row, file in zip(drop["rows"][:8], files))
        rows += ", ..." if len(drop["rows"]) > 8 else ""
        yield f"  dropped {drop['count']:,}: {reason} (source rows {rows})"
    if report["left_out"]["values"]:
        left = report["left_out"]
        yield f"  left out {left['pairs']:,} pairs of {left['values']:,} values without an agent"
    for name, count in report["incomplete_columns"].items():
        yield f"  column {name} left out: {count:,} pairs have none"
    yield "UTF-8 bytes   " + "".join(f"{name:>9}" for name in _QUANTILES)
    for part, quantiles in report["lengths"].items():
        yield f"  {part:<12}" + "".join(f"{quantiles[name]:>9,}" for name in _QUANTILES)
    yield f"held out by {report['held_out_by']}; pairs per agent:"
    yield f"  {'agent':>5}  {'train':>8} {'held-out':>8}  {'longer wins':>11}  name"
    for row in report["agents"][:shown]:
        yield (
            f"  {row['agent']:>5}  {row['train']:>8,} {row['held_out']:>8,}  "
            f"{row['longer_preferred']:>11.3f}  {row['name']}"
        )
    if len(report["agents"]) > shown:
        yield f"  ... {len(report['agents']) - shown:,} more (all in index.json)"
    longer = report["longer_preferred"]
    yield (
        f"the longer answer is preferred in {longer['pooled']:.3f} of pairs; "
        f"by agent {longer['lowest_agent']:.3f} to {longer['highest_agent']:.3f}"
    )
    mix = report["difference"]
    yield (
        f"agents differ in {mix['of']} by {mix['mix_distance']:.3f} "
        f"(total variation; {mix['if_dealt_at_random']:.3f} if dealt at random)"
    )
    if report["contradictions"]:
        both = report["contradictions"]
        yield (
            f"{both['contradicted']:,} of {both['rows_with_several']:,} source rows with several "
            "judgments contradict themselves"
        )
