"""The last word of a run: ``summary.txt``."""

from collections.abc import Mapping
from typing import Any

LINES = (
    ("loss", "training loss"),
    ("gradient_norm", "gradient norm of the average model"),
    ("consensus_distance", "consensus distance"),
    ("rewards/margins", "reward margin"),
    ("rewards/accuracies", "training accuracy"),
    ("heldout/accuracy", "held-out accuracy, own models"),
    ("heldout/average/accuracy", "held-out accuracy, average model"),
)


def summarize(
    records: list[dict[str, Any]], facts: Mapping[str, str], title: str
) -> str:
    """Return a page of text: what ran, and its metrics at the first and last record."""
    lines = [title, ""]
    width = max((len(k) for k in facts), default=0)
    lines += [f"{key:<{width}}  {value}" for key, value in facts.items()]
    if records:
        first, last = records[0], records[-1]
        ends = [f"round {record['round']}" for record in (first, last)]
        lines += ["", f"{'':<36}{ends[0]:>14}{ends[1]:>14}"]
        for key, label in LINES:
            if last.get(key) is not None:
                lines.append(f"{label:<36}{first.get(key, float('nan')):>14.5g}{last[key]:>14.5g}")
        traffic = last.get("bytes", 0)
        elapsed = sum(r["system"]["elapsed_seconds"] for r in records)
        lines += ["", f"agents sent {traffic / 1e6:,.1f} MB in {elapsed:,.1f} s"]
    return "\n".join(lines) + "\n"
