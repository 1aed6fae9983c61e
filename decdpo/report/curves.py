"""The picture of one run: its metrics against the rounds."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from decdpo.errors import DataError
from decdpo.records import read_records
from decdpo.report.canvas import picture, plain
from decdpo.report.study_figures import Figure, Line, Panel, draw

_AVERAGE, _OWN = "average model", "own models"
_HELDOUT = ", held-out pairs"

PANELS = (
    (
        "loss",
        "loss, nats",
        (
            ("loss", f"{_OWN}, training batches"),
            ("heldout/loss", _OWN + _HELDOUT),
            ("heldout/average/loss", _AVERAGE + _HELDOUT),
        ),
    ),
    (
        "held-out accuracy",
        "share of pairs",
        (
            ("heldout/accuracy", _OWN + _HELDOUT),
            ("heldout/average/accuracy", _AVERAGE + _HELDOUT),
        ),
    ),
    (
        "gradient norm of the average model",
        "Euclidean norm",
        (("gradient_norm", f"{_AVERAGE}, training pairs"),),
    ),
    ("consensus distance", "mean squared distance", (("consensus_distance", _OWN),)),
)
"""Title, y-axis label, and the (metrics key, legend) of each line of the four panels."""

NUMBERS = (
    "loss",
    "lr",
    "messages",
    "bytes",
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

SPENT = ("elapsed_seconds", "compute_seconds", "wait_seconds")
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
    """Draw the four panels of a run into ``out``, a PNG image, and as SVG beside it.

    Panels without a record are empty.

    Raises ``EnvironmentFault`` if matplotlib is not installed, or without room to write.
    """
    panels = []
    for name, label, lines in PANELS:
        found = []
        values = [float(r[key]) for key, _ in lines for r in records if r.get(key) is not None]
        log_y = any(value > 0 for value in values) and ("norm" in label or "distance" in label)
        for key, legend in lines:
            points = [(r["round"], [float(r[key])]) for r in records if r.get(key) is not None]
            # A distance of 0, as at the start, has no place on a logarithmic axis.
            points = [(x, y) for x, y in points if y[0] > 0] if log_y else points
            if points:
                found.append(Line.of(legend, points))
        panels.append(Panel(name, "round", label, tuple(found), log_y=log_y))
    draw(Figure(out.stem, tuple(panels), columns=2, title=plain(title)), out.parent)
