"""What `decdpo evaluate` prints: accuracies with their standard errors, agent by agent."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from decdpo.policies.stats import Stats

MODELS = ("own", "average")


def measured(stats: Stats, squared_weight: float) -> dict[str, float] | None:
    """Return loss, accuracy with its standard error, and margin; None without a pair.

    squared_weight : sum of the squared weights of the pairs. The error is that of pairs drawn one
    by one, sqrt(p (1 - p) / m), where m = (sum w)^2 / sum w^2 is the number of pairs if all weigh
    alike. Pairs that share a prompt or a user vary less freely than that.
    """
    means = stats.means()
    if not means:
        return None
    accuracy, total = means["rewards/accuracies"], float(stats.values[1])
    size = total**2 / squared_weight
    return {
        "loss": means["loss"],
        "accuracy": accuracy,
        "accuracy_se": sqrt(max(accuracy * (1 - accuracy), 0.0) / size),
        "margin": means["rewards/margins"],
    }


def heldout_table(result: Mapping[str, Any]) -> str:
    """Return the result as a table for people, of 95 columns at most but for its first line."""
    lines = [
        f"{result['run']} after round {result['round']}, {result['pairs_of']}",
        " " * 23 + f"{'own model':^35}" + f"{'average model':^36}".rstrip(),
        f"{'agent':<15}{'pairs':>8}" + f"{'loss':>10}{'accuracy':>16}{'margin':>10}" * 2,
    ]
    total = {"pairs": result["pairs"], **{model: result[model] for model in MODELS}}
    named = [(f"{r['agent']} {r['name']}".strip(), r) for r in result["agents"]]
    for label, row in [*named, ("all", total)]:
        cells = f"{label if len(label) < 15 else label[:11] + '...':<15}{row['pairs']:>8}"
        lines.append(cells + "".join(_cells(row[model]) for model in MODELS))
    lines.append("accuracies with their standard errors")
    return "\n".join(lines)


def _cells(found: Mapping[str, float] | None) -> str:
    if found is None:
        return f"{'-':>10}{'-':>16}{'-':>10}"
    accuracy = f"{found['accuracy']:.4f} ±{found['accuracy_se']:.4f}"
    return f"{_number(found['loss']):>10}{accuracy:>16}{_number(found['margin']):>10}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
