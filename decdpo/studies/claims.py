"""What a source claims, and whether the numbers of a study bear it out.

Cells that differ only in what a claim is about share their seeds, hence their data and batches; so
they are compared seed by seed, by the 95% confidence interval (Student) of the mean difference of
logarithms over the seeds. A difference must have a size to count: "a is smaller than b" is held if
the whole interval of a / b lies below 1 - ``MARGIN``, not held if it lies above that (where a is
larger, equal, or smaller by less than that), else undecided. A claim that a number lies in a range
is held if the number's whole interval does, not held if none of it does, else undecided.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from typing import Any

import numpy as np
from scipy import stats

from decdpo.studies.table import Missing, Row, Table

MARGIN = 0.05
"""What two quantities must differ by to be called different, as a share of the larger one."""

FALLEN = 0.5
"""A squared gradient norm that is called fallen is below this share of its first value."""

OURS = "our own"
"""The source of a claim that no paper makes."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim.

    held : yes, no, or None where the numbers do not decide. numbers : the evidence. why : what
    explains that it did not hold, or is not decided.
    """

    held: bool | None
    numbers: str
    why: str = ""

    @property
    def word(self) -> str:
        """Held, not held or undecided."""
        return {True: "held", False: "not held", None: "undecided"}[self.held]


@dataclass(frozen=True)
class Claim:
    """A statement of a source, and the function of the tidy table that judges it."""

    source: str
    text: str
    check: Callable[[Table], Verdict]

    def judge(self, table: Table) -> Verdict:
        """Check the claim; what rests on cells that are not there is undecided."""
        try:
            return self.check(table)
        except Missing as fault:
            return Verdict(None, f"not measured: {fault.what}")


def within(low: float, high: float, least: float, most: float) -> bool | None:
    """Judge by its interval [low, high] whether a number lies from ``least`` to ``most``."""
    if least <= low and high <= most:
        return True
    return False if high < least or low > most else None


def interval(low: float, high: float, form: str) -> str:
    """Return "[low, high]" in the format ``form``, or that a single value gives none."""
    return f"[{low:{form}}, {high:{form}}]" if high < inf else "(one value, no interval)"


def all_of(outcomes: Iterable[bool | None]) -> bool | None:
    """Judge a claim of many parts: not held if one is not, undecided if one is, else held."""
    found = list(outcomes)
    return False if False in found else None if None in found else True


@dataclass(frozen=True)
class Comparison:
    """The ratio a / b of two positive quantities, seed by seed.

    ratio : geometric mean. low, high : its 95% confidence interval. smaller : seeds in which a < b.
    seeds : how many were compared.
    """

    ratio: float
    low: float
    high: float
    smaller: int
    seeds: int

    @property
    def less(self) -> bool | None:
        """Whether a is smaller than b by ``MARGIN`` or more, None if the seeds do not decide."""
        return True if self.high < 1 - MARGIN else False if self.low > 1 - MARGIN else None

    def __str__(self) -> str:
        found = interval(self.low, self.high, ".3g")
        return f"{self.ratio:.3g} {found}, smaller in {self.smaller} of {self.seeds} seeds"


def compare(a: Mapping[int, float], b: Mapping[int, float]) -> Comparison:
    """Compare two quantities on the seeds that both have.

    Raises ``Missing`` if they share none.
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        raise Missing("the two sides share no seed")
    tiny = 1e-300
    logs = [log(max(a[s], tiny)) - log(max(b[s], tiny)) for s in seeds]
    middle, half = float(np.mean(logs)), half_width(logs)
    return Comparison(
        exp(middle),
        exp(middle - half),
        inf if middle + half > 700 else exp(middle + half),
        sum(a[s] < b[s] for s in seeds),
        len(seeds),
    )


def half_width(values: Sequence[float], level: float = 0.95) -> float:
    """Return half the confidence interval of the mean of ``values``; infinite for a single one."""
    if len(values) < 2:
        return inf
    quantile = stats.t.ppf(0.5 + level / 2, len(values) - 1)
    return float(quantile * np.std(values, ddof=1) / len(values) ** 0.5)


@dataclass(frozen=True)
class Estimate:
    """A number from a sample. value : the number. low, high : its 95% confidence interval."""

    value: float
    low: float
    high: float

    def within(self, least: float, most: float) -> bool | None:
        """Judge whether it lies from ``least`` to ``most``."""
        return within(self.low, self.high, least, most)


@dataclass(frozen=True)
class Mean(Estimate):
    """A mean over seeds. seeds : how many."""

    seeds: int

    def __str__(self) -> str:
        return f"{self.value:.4g} {interval(self.low, self.high, '.4g')}"


def mean_of(values: Mapping[int, float]) -> Mean:
    """Return the mean over the seeds; of a single one the interval is infinite."""
    found = list(values.values())
    middle, half = float(np.mean(found)), half_width(found)
    return Mean(middle, middle - half, middle + half, len(found))


def mean_text(values: Mapping[int, float]) -> str:
    """Return "mean +- standard deviation" over the seeds."""
    found = list(values.values())
    spread = f" ± {np.std(found, ddof=1):.2g}" if len(found) > 1 else ""
    return f"{np.mean(found):.4g}{spread}"


Named = tuple[str, Mapping[int, float]]
"""What a quantity is called, and its value for every seed."""


def in_order(what: str, found: Sequence[Named], why: str = "") -> Verdict:
    """Judge whether the quantities grow from each to the next.

    Held if each is smaller than the next by ``MARGIN`` beyond doubt, not held if one is beyond
    doubt not. ``why`` is said where it did not hold, unless all are in order and merely too close.
    """
    pairs = list(zip(found, found[1:], strict=False))
    results = [compare(a, b) for (_, a), (_, b) in pairs]
    numbers = "; ".join(f"{name} {mean_text(values)}" for name, values in found)
    ratios = "; ".join(
        f"{first} / {second} = {result}"
        for ((first, _), (second, _)), result in zip(pairs, results, strict=True)
    )
    held = all_of(result.less for result in results)
    if held:
        why = ""
    elif all(result.high < 1 for result in results):
        why = (
            f"They are in this order, but by less than {MARGIN:.0%}: too little to count."
            if held is False
            else f"They are in this order; whether by {MARGIN:.0%}, these seeds do not decide."
        )
    elif held is None:
        why = ""
    return Verdict(held, f"{what}: {numbers}. Ratios: {ratios}", why)


def no_worse(what: str, better: Named, worse: Named, why: str = "") -> Verdict:
    """Judge whether the first quantity is not larger than the second by ``MARGIN``.

    Held if the whole interval of their ratio lies below 1 + ``MARGIN``, not held if it lies above.
    """
    (first, a), (second, b) = better, worse
    found = compare(a, b)
    held = within(found.low, found.high, 0.0, 1 + MARGIN)
    numbers = f"{what}: {first} {mean_text(a)}; {second} {mean_text(b)}. Ratio: {found}"
    return Verdict(held, numbers, why if held is False else "")


def each_of(what: str, verdicts: Sequence[Verdict], why: str = "") -> Verdict:
    """Judge a claim that is made of several cases, each with a verdict on the quantity ``what``."""
    held = all_of(verdict.held for verdict in verdicts)
    numbers = "; ".join(verdict.numbers.removeprefix(f"{what}: ") for verdict in verdicts)
    return Verdict(held, f"{what}: {numbers}", why if held is False else "")


def errors(table: Table, accuracy: str, **labels: Any) -> dict[int, float]:
    """Return 1 - the final value of a column, an accuracy, by seed."""
    found = table.final().where(labels).by_seed(accuracy)
    return {seed: 1 - value for seed, value in found.items()}


def increasing(
    table: Table, y: str, steps: Sequence[tuple[str, Mapping[str, Any]]], why: str = ""
) -> Verdict:
    """Judge whether the final ``y`` grows along ``steps``, pairs of a name and its labels."""
    final = table.final()
    return in_order(y, [(name, final.where(labels).by_seed(y)) for name, labels in steps], why)


def descends(
    table: Table, hue: Sequence[tuple[str, Mapping[str, Any]]], why: str = ""
) -> Verdict:
    """Judge whether the final gap of every one of ``hue`` is below ``FALLEN``; at first it is 1."""
    final, results, numbers = table.final(), [], []
    for name, labels in hue:
        gaps = final.where(labels).by_seed("gap")
        result = compare(gaps, dict.fromkeys(gaps, 1.0))
        results.append(within(result.low, result.high, 0.0, FALLEN))
        numbers.append(f"{name} {result.ratio:.3g} {interval(result.low, result.high, '.3g')}")
    held = all_of(results)
    return Verdict(held, "final gap: " + "; ".join(numbers), why if held is False else "")


@dataclass(frozen=True)
class Slope(Estimate):
    """The slope of a straight line through (ln x, ln y).

    intercept : ln y at x = 1. r_squared : share of the variance explained. points : how many.
    """

    intercept: float
    r_squared: float
    points: int

    def __str__(self) -> str:
        interval = f"[{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f} {interval} (R² {self.r_squared:.3f}, {self.points} points)"


def fit(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Fit a line in log-log by least squares, with Student's interval for its slope.

    Raises ``Missing`` for fewer than three points with different x.
    """
    if len(set(x)) < 3:
        raise Missing("a slope with an interval needs three different points")
    line = stats.linregress(np.log(x), np.log(y))
    half = float(stats.t.ppf(0.975, len(x) - 2) * line.stderr)
    slope = float(line.slope)
    return Slope(
        slope, slope - half, slope + half, float(line.intercept), float(line.rvalue) ** 2, len(x)
    )


def slope_by_seed(rows: Sequence[Row], x: str, y: str) -> Mean:
    """Fit ln y against ln x for every seed, and return the mean of the slopes.

    The cells of a seed share their data, so the seeds are the sample and not the points. Raises
    ``Missing`` if no seed has three rows.
    """
    of_seed: dict[int, list[Row]] = {}
    for row in rows:
        of_seed.setdefault(row["seed"], []).append(row)
    slopes = {
        seed: fit([row[x] for row in found], [row[y] for row in found]).value
        for seed, found in of_seed.items()
        if len(found) > 2
    }
    if not slopes:
        raise Missing("no seed has three finished cells to fit")
    return mean_of(slopes)


def rank_correlation(rows: Sequence[Row], x: str, y: str) -> float:
    """Return Spearman's correlation of two columns."""
    return float(stats.spearmanr([r[x] for r in rows], [r[y] for r in rows]).statistic)


def seed_means(rows: Sequence[Row], keys: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """Return a row for each combination of ``keys``, with geometric means of ``columns``.

    For fits over graphs: what puts a graph off the line it does in every seed, so its seeds are one
    point and not as many, and the interval of the slope is that of the scatter between graphs.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        dict(zip(keys, group, strict=True))
        | {name: exp(np.mean([log(row[name]) for row in found])) for name in columns}
        for group, found in groups.items()
    ]
