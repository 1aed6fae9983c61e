"""The last word of a run: ``summary.txt``."""

from collections.abc import Mapping
from typing import Any

from decdpo.report.chosen import explain_chosen, last_tenth

LINES = (
    ("loss", "training loss"),
    ("gradient_norm", "gradient norm of the average model"),
    ("consensus_distance", "consensus distance"),
    ("rewards/margins", "reward margin"),
    ("rewards/accuracies", "training accuracy"),
    ("heldout/accuracy", "held-out accuracy, own models"),
    ("heldout/average/accuracy", "held-out accuracy, average model"),
    ("privacy/epsilon", "epsilon spent, of the agent with most"),
)


def summarize(
    records: list[dict[str, Any]], facts: Mapping[str, str], title: str
) -> str:
    """Return a page of text: what ran, its metrics at the first and last record, its rewards.

    Beside the last record, which is of one round, stand the means over the last tenth of them.
    """
    lines = [title, ""]
    width = max((len(k) for k in facts), default=0)
    lines += [f"{key:<{width}}  {value}" for key, value in facts.items()]
    if records:
        first, last, tenth = records[0], records[-1], last_tenth(records)
        ends = [f"round {record['round']}" for record in (first, last)]
        lines += ["", f"{'':<36}{ends[0]:>14}{ends[1]:>14}{'last tenth':>14}"]
        for key, label in LINES:
            if last.get(key) is not None:
                values = (first.get(key), last[key], tenth.get(key))
                cells = (f"{'-':>14}" if v is None else f"{v:>14.5g}" for v in values)
                lines.append(f"{label:<36}" + "".join(cells))
        lines += ["", f"in the last tenth of the rounds {explain_chosen(tenth)}"]
        traffic = last.get("bytes", 0)
        elapsed = sum(r["system"]["elapsed_seconds"] for r in records)
        lines += ["", f"agents sent {traffic / 1e6:,.1f} MB in {elapsed:,.1f} s"]
    return "\n".join(lines) + "\n"
