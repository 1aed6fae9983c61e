"""The picture of one run: its metrics against the rounds."""

import json
from pathlib import Path
from typing import Any

from decdpo.errors import DataError
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl`` in order; a torn last line is left out.

    Raises ``DataError`` if the file cannot be read, or another line is not a record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as fault:
        raise DataError(
            f"{path} cannot be read: {fault.strerror}", "give the folder of a run"
        ) from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            record = None
        if not isinstance(record, dict) or type(record.get("round")) is not int:
            raise DataError(
                f"{path}, line {number} is not a record", "restore the file, or delete the line"
            )
        records.append(record)
    return records


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
