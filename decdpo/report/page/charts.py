"""Which charts a page has, and the numbers behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from decdpo.report.page.model import Shown
from decdpo.timing import PARTS

MOST_POINTS = 1500
"""Records of a run that its curves have; of more, every so many, and the last one."""

MOST_SINGLE = 64
"""Agents that have a curve each; more are drawn as a distribution."""

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the agents' accuracies."""

BINS = 40


@dataclass(frozen=True)
class Chart:
    """A chart: one line for every run and key. lines : metric key and what it is called.

    unit : of the y-axis. log : whether it is logarithmic. note : a sentence below it.
    """

    key: str
    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    log: bool = False
    note: str = ""


LEARNING = (
    Chart(
        "loss", "Loss", "loss, nats",
        (("loss", "training batches"), ("heldout/average/loss", "held-out, average model"),
         ("heldout/loss", "held-out, own models")),
    ),
    Chart(
        "accuracy", "Held-out accuracy", "share of pairs",
        (("heldout/average/accuracy", "average model"), ("heldout/accuracy", "own models")),
    ),
    Chart(
        "gradient", "Gradient norm of the average model", "norm",
        (("gradient_norm", "training pairs"),), log=True,
    ),
    Chart("lr", "Step size", "step size", (("lr", "of the last local step"),)),
)  # fmt: skip

REWARDS = (
    Chart(
        "rewards", "Rewards", "reward",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
        note="beta times the log-ratio to the reference, on the training batches",
    ),
    Chart("margins", "Reward margin", "reward", (("rewards/margins", "chosen less rejected"),)),
    Chart(
        "train_accuracy", "Training accuracy", "share of pairs",
        (("rewards/accuracies", "accuracy"), ("saturated", "saturated pairs")),
    ),
    Chart(
        "drift", "Drift of the chosen answers", "nats",
        (("drift/chosen", "log-likelihood against the reference"),),
    ),
)  # fmt: skip

AGREEMENT = (
    Chart(
        "consensus", "Consensus distance", "mean squared distance",
        (("consensus_distance", "measured"), ("~independent", "predicted, independent pushes"),
         ("~aligned", "predicted, aligned pushes")),
        log=True,
        note="of the agents' models to their average; the theory's curves are what the spectral "
        "gap leaves of pushes like the first round's",
    ),
    Chart(
        "interference", "Interference of factors mixed apart", "relative to the mixed product",
        (("lora/interference", "missed by mixing factors"), ("lora/floor", "by any of that rank")),
        log=True,
        note="what mixing the factors of adapters apart misses of the mixed product, in a round, "
        "and the least that any adapter of the same rank would miss",
    ),
)  # fmt: skip

SPEED = (
    Chart(
        "seconds", "Time of a round", "seconds",
        (("~seconds", "elapsed, measuring included"),),
    ),
    Chart("pairs_rate", "Pairs a second", "pairs/s", (("~pairs_per_second", "all agents"),)),
    Chart("tokens_rate", "Tokens a second", "tokens/s", (("~tokens_per_second", "all agents"),)),
    Chart("mfu", "Model FLOPs utilisation", "share of the peak", (("~mfu", "all GPUs"),)),
)  # fmt: skip

PLACED = ("pairs_per_second", "tokens_per_second", "mfu")
SHOWN_ELSEWHERE = {"round", "rho", "messages", "bytes", "heldout/pairs", "logps/chosen",
                   "logps/rejected", "imbalance/log_ratio"}  # fmt: skip


def others(runs: Sequence[Shown]) -> tuple[Chart, ...]:
    """Return a chart for every further number that the records hold, named as in the records."""
    known = {key for c in (*LEARNING, *REWARDS, *AGREEMENT) for key, _ in c.lines}
    found = dict.fromkeys(
        key
        for run in runs
        for key, value in run.records[-1].items()
        if key not in known | SHOWN_ELSEWHERE and _number(value) is not None
    )
    return tuple(Chart(f"other-{k}", key, "", ((key, key),)) for k, key in enumerate(found))


def lines_of(chart: Chart, data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of ``chart`` that at least one of the runs has a number for.

    A step size that never changes is not drawn: the method names it.
    """
    if chart.key == "lr" and all(len(set(run["series"].get("lr", ()))) < 2 for run in data):
        return []
    return [
        key
        for key, _ in chart.lines
        if any(v is not None for run in data for v in run["series"].get(key, ()))
    ]


def numbers(run: Shown, charts: Sequence[Chart]) -> dict[str, Any]:
    """Return what the browser draws of one run, as JSON values."""
    kept = thinned(len(run.records))
    records = [run.records[k] for k in kept]
    spent = list(accumulate(float(r["system"]["elapsed_seconds"]) for r in run.records))
    series: dict[str, list[float | None]] = {}
    keys = {key for chart in charts for key, _ in chart.lines if not key.startswith("~")}
    for key in sorted(keys):
        values = [_number(r.get(key)) for r in records]
        if any(v is not None for v in values):
            series[key] = values
    for key in PLACED:
        values = [_number(r["system"].get(key)) for r in records]
        if any(v is not None for v in values):
            series[f"~{key}"] = values
    for name, predicted in (("~aligned", run.aligned), ("~independent", run.independent)):
        if predicted:
            series[name] = [_number(predicted[k]) for k in kept]
    series["~seconds"] = [_number(v) for v in _pace(run.records, kept)]
    return {
        "name": run.name,
        "rounds": [r["round"] for r in records],
        "seconds": [_number(spent[k]) for k in kept],
        "megabytes": [_number(r.get("bytes", 0) / 1e6) for r in records],
        "series": series,
        "events": [[e.round, e.sign, e.text] for e in run.events],
        **_agents(run, records),
    }


def thinned(count: int) -> list[int]:
    """Return which of ``count`` records are drawn: all, or every so many and the last."""
    every = -(-count // MOST_POINTS)
    kept = list(range(0, count, every))
    return kept if kept[-1] == count - 1 else [*kept, count - 1]


def _pace(records: Sequence[Mapping[str, Any]], kept: Sequence[int]) -> Iterator[float | None]:
    """Yield the seconds of a round at each of the records ``kept``; none for the start."""
    before = -1
    for k in kept:
        rounds = records[k]["round"] - records[before]["round"] if before >= 0 else 0
        seconds = sum(float(r["system"]["elapsed_seconds"]) for r in records[before + 1 : k + 1])
        yield seconds / rounds if rounds > 0 else None
        before = k


def _agents(run: Shown, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the held-out accuracy of the agents: their quantiles, and the curve of each of few."""
    width = run.agents
    table = np.full((len(records), width), np.nan)
    for row, record in zip(table, records, strict=True):
        found = np.array(record["heldout/accuracy_by_agent"], dtype=float)
        row[run.left(record)] = found
    if not np.isfinite(table).any():
        return {}
    some = np.isfinite(table).any(axis=1)
    quantiles = np.full((len(table), len(QUANTILES)), np.nan)
    quantiles[some] = np.nanquantile(table[some], QUANTILES, axis=1).T
    values: dict[str, Any] = {"spread": _columns(quantiles)}
    if width <= MOST_SINGLE:
        values["agents"] = _columns(table)
        names = run.agent_names
        values["agent_names"] = list(names) if len(names) == width else [""] * width
    return values


def _columns(table: np.ndarray) -> list[list[float | None]]:
    return [[_number(v) for v in column] for column in table.T]


def parts_of(run: Shown) -> dict[str, tuple[float, float, float]]:
    """Return the seconds of each part over all records: those of the least busy process of every
    record, of the mean, of the busiest. Empty where an earlier version recorded none."""
    found = [r["system"]["parts"] for r in run.records if "parts" in r["system"]]
    sums = {}
    for part in PARTS if found else ():
        least, mean, most = (sum(float(p[part][k]) for p in found) for k in range(3))
        sums[part] = (least, mean, most)
    return sums


def histogram(runs: Sequence[Shown]) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Return how many agents of each run have which held-out accuracy at the end.

    Edges (BINS + 1,) and counts (BINS,) of every run; None without a held-out pair.
    """
    last = [
        np.array([v for v in run.records[-1]["heldout/accuracy_by_agent"] if v is not None], float)
        for run in runs
    ]
    all_of_them = np.concatenate(last)
    if not all_of_them.size:
        return None
    edges = np.histogram_bin_edges(all_of_them, bins=BINS)
    return edges, [np.histogram(values, bins=edges)[0] for values in last]


def _number(value: Any) -> float | None:
    """Return a finite number to six digits; None for anything else."""
    if type(value) not in (int, float) and not isinstance(value, np.floating):
        return None
    if not np.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short
