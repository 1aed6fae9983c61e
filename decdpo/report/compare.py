"""Several runs beside each other: a table, a figure, and what their rewards mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decdpo.errors import DataError
from decdpo.report.canvas import plain
from decdpo.report.chosen import explain_chosen, last_tenth
from decdpo.report.study_figures import Figure, Line, Panel, draw

COLUMNS = (
    ("loss", "loss"),
    ("gradient_norm", "gradient"),
    ("consensus_distance", "consensus"),
    ("heldout/accuracy", "own acc."),
    ("heldout/average/accuracy", "mean acc."),
    ("rewards/chosen", "chosen"),
    ("rewards/margins", "margin"),
    ("saturated", "saturated"),
)
"""Metrics of the last record and their titles in the table."""

NOISY = ("loss", "rewards/chosen", "rewards/margins", "saturated")
"""Those of them that are of one round's batches: the table has their means over the last tenth."""

PANELS = (
    ("loss", "training loss", "loss, nats", False),
    ("gradient_norm", "gradient norm of the average model", "Euclidean norm", True),
    ("consensus_distance", "consensus distance", "mean squared distance", True),
    ("heldout/average/accuracy", "held-out accuracy, average model", "share of pairs", False),
    ("rewards/chosen", "reward of the chosen answers", "reward (beta x nats)", False),
    ("rewards/margins", "reward margin", "reward (beta x nats)", False),
)
"""Metric, title, what its axis shows, and whether that is logarithmic."""


@dataclass(frozen=True)
class RunFacts:
    """One run: its folder, what it was ("dsgd on ring, E = 1, lr 0.1"), agents, and its records."""

    folder: Path
    what: str
    agents: int
    records: Sequence[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the run's last record, its means over the last tenth, what it cost and means."""
        last, tenth = self.records[-1], last_tenth(self.records)
        return {
            "run": str(self.folder),
            "what": self.what,
            "agents": self.agents,
            "round": last["round"],
            **{key: last.get(key) for key, _ in COLUMNS},
            "drift/chosen": last.get("drift/chosen"),
            "imbalance/log_ratio": last.get("imbalance/log_ratio"),
            "bytes": last.get("bytes", 0),
            "seconds": round(sum(r["system"]["elapsed_seconds"] for r in self.records), 3),
            "last_tenth": {key: tenth.get(key) for key in (*NOISY, "records")},
            "rewards": explain_chosen(tenth),
        }


def table(runs: Sequence[RunFacts]) -> str:
    """Return the last records as a text table, then one line on the rewards of each run.

    What is of one round's batches, ``NOISY``, is the mean over the last tenth of the rounds.
    """
    names = names_of(runs)
    head = ["run", "what", "agents", "round", *(title for _, title in COLUMNS), "MB", "seconds"]
    lines = [head]
    for run, name in zip(runs, names, strict=True):
        found = run.to_json()
        values = [(found["last_tenth"] if k in NOISY else found)[k] for k, _ in COLUMNS]
        cells = ["-" if v is None else f"{v:.4g}" for v in values]
        cost = [f"{found['bytes'] / 1e6:.1f}", f"{found['seconds']:.1f}"]
        lines.append(
            [name, run.what, str(run.agents), str(found["round"]), *cells, *cost]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(w) if k < 2 else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    titles = ", ".join(title for key, title in COLUMNS if key in NOISY)
    text += ["", f"{titles}: of the training batches, means over the last tenth of the rounds"]
    text += [
        f"{name}: {explain_chosen(last_tenth(run.records))}"
        for run, name in zip(runs, names, strict=True)
    ]
    return "\n".join(text)


def names_of(runs: Sequence[RunFacts]) -> list[str]:
    """Return a name for each run: its folder's, with as much of the path as distinguishes them."""
    paths = [run.folder.absolute().parts for run in runs]
    found = []
    for path in paths:
        depth = 1
        while depth < len(path) and any(
            other != path and other[-depth:] == path[-depth:] for other in paths
        ):
            depth += 1
        found.append("/".join(path[-depth:]))
    return found


def plot(runs: Sequence[RunFacts], path: Path) -> None:
    """Draw the metrics of all runs over the rounds into ``path``, a PNG and an SVG beside it.

    Raises ``EnvironmentFault`` without matplotlib or room to write.
    """
    panels = []
    for key, title, label, log_y in PANELS:
        lines = []
        for run, name in zip(runs, names_of(runs), strict=True):
            points = [
                (r["round"], [r[key]])
                for r in run.records
                # A distance of 0, as at the start, has no place on a logarithmic axis.
                if r.get(key) is not None and (r[key] > 0 or not log_y)
            ]
            if points:
                lines.append(Line.of(plain(name), points))
        if lines:
            panels.append(Panel(title, "round", label, tuple(lines), log_y=log_y))
    if not panels:
        raise DataError("no run has recorded what could be drawn", "leave --plot out")
    draw(Figure(path.stem, tuple(panels)), path.parent)
