"""The picture of one run: its metrics against the rounds."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from decdpo.errors import DataError
from decdpo.records import read_records
from decdpo.report.canvas import blank, picture

PANELS = (
    ("loss", "loss", (("loss", "training"), ("heldout/average/loss", "held-out, average model"))),
    (
        "held-out accuracy",
        "accuracy",
        (("heldout/accuracy", "own models"), ("heldout/average/accuracy", "average model")),
    ),
    ("gradient norm of the average model", "norm", (("gradient_norm", "gradient norm"),)),
    ("consensus distance", "mean squared distance", (("consensus_distance", "distance"),)),
)
"""Title, y-axis label, and the (metrics key, legend) of each line of the four panels."""

NUMBERS = (
    "loss",
    "lr",
    "gradient_norm",
    "consensus_distance",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "saturated",
    "drift/chosen",
    "imbalance/log_ratio",
    "heldout/loss",
    "heldout/accuracy",
    "heldout/average/loss",
    "heldout/average/accuracy",
)
"""Keys of a record that the reports compute with."""

SPENT = ("bytes", "messages", "elapsed_seconds", "compute_seconds", "wait_seconds")
"""Keys of a record's ``system`` that they compute with."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl`` in order; a torn last line is left out.

    Raises ``DataError`` if the file cannot be read, was changed, or holds what is no record of a
    run: what is no number where the reports want one.
    """
    records = read_records(path)
    for record in records:
        system = record.get("system", {})
        wrong = "system" if not isinstance(system, dict) else _no_number(record, NUMBERS)
        wrong = wrong or _no_number(system, SPENT)
        if wrong:
            raise DataError(
                f"{path}: the record of round {record['round']} has no number {wrong}",
                "restore the file: this is not what a run writes",
            )
    return records


def _no_number(values: Mapping[str, Any], keys: Collection[str]) -> str:
    """Return a key whose value is there, and is no number; empty if there is none."""
    found = (key for key in keys if values.get(key) is not None)
    return next((key for key in found if type(values[key]) not in (int, float)), "")


@picture
def plot_run(records: list[dict[str, Any]], out: Path, title: str) -> None:
    """Draw the four panels of a run into the image ``out``.

    Raises ``EnvironmentFault`` if matplotlib is not installed or fails.
    """
    figure = blank((10, 7))
    figure.suptitle(title)
    for axes, (name, label, lines) in zip(figure.subplots(2, 2).flat, PANELS):
        for key, legend in lines:
            points = [(r["round"], r[key]) for r in records if r.get(key) is not None]
            if points:
                axes.plot(*zip(*points), label=legend, marker="." if len(points) < 30 else "")
        values = [r[key] for r in records for key, _ in lines if r.get(key) is not None]
        if "norm" in label or "distance" in label:
            if values and min(values) > 0:
                axes.set_yscale("log")
        axes.set(title=name, xlabel="round", ylabel=label)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    figure.savefig(out, dpi=110)
