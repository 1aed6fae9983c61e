"""What `decdpo evaluate` prints: accuracies with their standard errors, agent by agent."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from decdpo.policies.stats import Stats

MODELS = ("own", "average")
PERSONAL = ("explicit", "combined")
"""Margins beside the implicit one, of a policy with explicit rewards."""


def measured(stats: Stats, squared_weight: float) -> dict[str, Any] | None:
    """Return loss, accuracy with its standard error, and margin; None without a pair.

    squared_weight : sum of the squared weights of the pairs. The error is that of pairs drawn one
    by one, sqrt(p (1 - p) / m), where m = (sum w)^2 / sum w^2 is the number of pairs if all weigh
    alike. Pairs that share a prompt or a user vary less freely than that. Of a policy with explicit
    rewards accuracy and margin are those of the implicit ones; those of the explicit ones, and of
    both together, stand under "explicit" and "combined".
    """
    means = stats.means()
    if not means:
        return None
    accuracy, total = means["rewards/accuracies"], float(stats.values[1])
    size = total**2 / squared_weight
    further = {
        name: {
            "accuracy": means[f"{name}/accuracies"],
            "accuracy_se": _error(means[f"{name}/accuracies"], size),
            "margin": means[f"{name}/margins"],
        }
        for name in PERSONAL
        if f"{name}/accuracies" in means
    }
    return {
        "loss": means["loss"],
        "accuracy": accuracy,
        "accuracy_se": _error(accuracy, size),
        "margin": means["rewards/margins"],
        **further,
    }


def _error(accuracy: float, size: float) -> float:
    return sqrt(max(accuracy * (1 - accuracy), 0.0) / size)


def heldout_table(result: Mapping[str, Any]) -> str:
    """Return the result as a table for people, of 95 columns at most but for its first line."""
    lines = [
        f"{result['run']} after round {result['round']}, {result['pairs_of']}",
        " " * 23 + f"{'own model':^35}" + f"{'average model':^36}".rstrip(),
        f"{'agent':<15}{'pairs':>8}" + f"{'loss':>10}{'accuracy':>16}{'margin':>10}" * 2,
    ]
    total = {"pairs": result["pairs"], **{model: result[model] for model in MODELS}}
    if total["own"] and PERSONAL[-1] in total["own"]:
        # What such a policy is judged by.
        lines[0] += "; accuracies of the combined margin"
    named = [(f"{r['agent']} {r['name']}".strip(), r) for r in result["agents"]]
    for label, row in [*named, ("all", total)]:
        cells = f"{label if len(label) < 15 else label[:11] + '...':<15}{row['pairs']:>8}"
        lines.append(cells + "".join(_cells(row[model]) for model in MODELS))
    lines.append("accuracies with their standard errors")
    return "\n".join(lines)


def newcomers_table(result: Mapping[str, Any]) -> str:
    """Return what was measured of new people as a table, before and after their adaptation."""
    judged = "combined margin" if PERSONAL[-1] in result["before"] else "margin"
    lines = [
        f"{result['run']} after round {result['round']}, held-out pairs of {result['pairs_of']}",
        f"adapted on up to {result['adapt_pairs']} pairs of each person, {result['adapt_steps']} "
        f"steps; accuracies of the {judged}",
        " " * 23 + f"{'not adapted':^35}" + f"{'adapted':^36}".rstrip(),
        f"{'person':<15}{'pairs':>8}" + f"{'loss':>10}{'accuracy':>16}{'margin':>10}" * 2,
    ]
    named = [(f"{r['person']} {r['name']}".strip(), r) for r in result["people"]]
    for label, row in [*named, ("all", result)]:
        cells = f"{label if len(label) < 15 else label[:11] + '...':<15}{row['pairs']:>8}"
        lines.append(cells + "".join(_cells(row[model]) for model in ("before", "after")))
    lines.append("accuracies with their standard errors")
    return "\n".join(lines)


def _cells(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"{'-':>10}{'-':>16}{'-':>10}"
    judged = found.get(PERSONAL[-1], found)
    accuracy = f"{judged['accuracy']:.4f} ±{judged['accuracy_se']:.4f}"
    return f"{_number(found['loss']):>10}{accuracy:>16}{_number(judged['margin']):>10}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
