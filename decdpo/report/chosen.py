"""What a falling reward of the chosen answers means: one sentence from what the run logged."""

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

MANY = 0.5
"""Share of saturated pairs that is called most."""


TENTH = 0.1
"""Share of the rounds, the last ones, over which what training logs is averaged."""


def last_tenth(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of every number over the records of the last tenth of the rounds.

    A record is of the batches of one round, and jumps from one to the next. ``round`` is the last
    one, ``records`` how many the means are of.
    """
    last = records[-1]["round"]
    kept = [r for r in records if r["round"] > (1 - TENTH) * last] or [records[-1]]
    numbers = [
        key
        for key in records[-1]
        if all(type(r.get(key)) in (int, float) for r in kept)
    ]
    means = {key: sum(float(r[key]) for r in kept) / len(kept) for key in numbers}
    return {**means, "round": last, "records": len(kept)}


def explain_chosen(last: Mapping[str, Any]) -> str:
    """Explain ``rewards/chosen`` of ``last_tenth``; at the start of every run it is 0.

    DPO's loss sees only the margin, so both rewards may fall together; which answer the gradient
    leans to is the imbalance of Balanced-DPO, eq. 2.
    """
    chosen, rejected = last.get("rewards/chosen"), last.get("rewards/rejected")
    if chosen is None or rejected is None:
        return "rewards were not recorded"
    moved = f"log pi(chosen) moved by {last['drift/chosen']:+.3g} nats"
    if chosen >= 0:
        return f"rewards/chosen rose to {chosen:.3g}: {moved}, chosen answers grew more likely"
    fell = f"rewards/chosen fell to {chosen:.3g} ({moved})"
    if chosen - rejected <= 0:
        return (
            f"{fell} and rewards/rejected fell less, to {rejected:.3g}: the run does not learn the "
            "preferences (step too large, or too few rounds)"
        )
    lean = last["imbalance/log_ratio"]
    whose = "rejected" if lean < 0 else "chosen"
    text = (
        f"{fell} while rewards/rejected fell further, to {rejected:.3g}: the loss asks for their "
        f"difference alone, and its gradient per probability is {exp(min(abs(lean), 700)):.3g} "
        f"times larger on the {whose} answers"
    )
    saturated = last["saturated"]
    if saturated > MANY:
        text += f"; {saturated:.0%} of the pairs are saturated, so little will change"
    elif whose == "rejected":
        text += ", which pushes probability off both to answers outside the pairs"
    else:
        text += f", of which {1 - saturated:.0%} still pull"
    return text
