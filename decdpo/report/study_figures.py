"""Pictures of studies: means over seeds with their range, as PNG and SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decdpo.data.storage import replacing
from decdpo.report.canvas import blank, picture

COLOURS = ("#3b6ea5", "#c2572b", "#4f8f4a", "#8a5aa8", "#a8862a", "#3f9c9c", "#b0486e", "#6b6b6b")
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Line:
    """One curve: x and mean, low, high, each (K,).

    style : "line", "points" or "dashed". colour : number of its colour; by default its place.
    """

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    style: str = "line"
    colour: int | None = None

    @classmethod
    def of(
        cls,
        label: str,
        points: Sequence[tuple[float, Sequence[float]]],
        style: str = "line",
        colour: int | None = None,
    ) -> "Line":
        """Make a curve from (x, values over the seeds), its band from least to largest."""
        return cls(
            label,
            tuple(x for x, _ in points),
            tuple(float(np.mean(v)) for _, v in points),
            tuple(min(v) for _, v in points),
            tuple(max(v) for _, v in points),
            style,
            colour,
        )


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    xlabel: str
    ylabel: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Heat:
    """A matrix as a picture: values (rows, columns)."""

    title: str
    xlabel: str
    ylabel: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Figure:
    """Panels side by side; ``name`` is that of the files."""

    name: str
    panels: tuple[Panel | Heat, ...]
    columns: int = 3


@picture
def draw(figure: Figure, folder: Path) -> list[str]:
    """Write ``folder``/NAME.png and NAME.svg, and return the two names.

    The same numbers give the same SVG. Raises ``EnvironmentFault`` without matplotlib or room to
    write.
    """
    columns = min(figure.columns, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    canvas = blank((5.2 * columns, 4.0 * rows))
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(figure.panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes, figure.panels, strict=False):
        if isinstance(panel, Heat):
            _heat(canvas, ax, panel)
        else:
            _panel(ax, panel)
    names = []
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "decdpo", "svg.fonttype": "none"}):
        for kind in ("png", "svg"):
            names.append(f"{figure.name}.{kind}")
            about = {"Date": None} if kind == "svg" else {}
            with replacing(folder / names[-1], mode=0o644) as partial:
                canvas.savefig(partial, format=kind, dpi=110, metadata=about)
    return names


def _panel(ax: Any, panel: Panel) -> None:
    for k, line in enumerate(panel.lines):
        colour = COLOURS[(k if line.colour is None else line.colour) % len(COLOURS)]
        # The ninth line has the first one's colour and the second one's marker.
        mark = MARKERS[(k + k // len(COLOURS)) % len(MARKERS)]
        if line.style == "points":
            error = np.abs(np.array([line.low, line.high]) - np.array(line.mean))
            ax.errorbar(line.x, line.mean, error, fmt=mark, color=colour, ms=5, label=line.label,
                        capsize=2, lw=1)  # fmt: skip
            continue
        dashes = "--" if line.style == "dashed" else "-"
        sparse = max(1, len(line.x) // 8)
        ax.plot(line.x, line.mean, dashes, color=colour, label=line.label, lw=1.8,
                marker=mark if line.style == "line" else "", markevery=(k % sparse, sparse), ms=5)
        ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, lw=0)
    if panel.log_x:
        ax.set_xscale("log")
        _log_ticks(ax.xaxis, *ax.get_xlim())
    if panel.log_y and any(value > 0 for line in panel.lines for value in line.mean):
        ax.set_yscale("log", nonpositive="mask")
        _log_ticks(ax.yaxis, *ax.get_ylim())
    ax.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    ax.grid(alpha=0.3, which="major")
    if panel.lines:
        many = len(panel.lines) > 7
        ax.legend(fontsize=7 if many else 8, framealpha=0.6, ncols=2 if many else 1)


def _log_ticks(axis: Any, low: float, high: float) -> None:
    """Name more than the powers of ten where few of them are shown, and no names that overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        narrow = high < 5 * low
        axis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _heat(canvas: Any, ax: Any, panel: Heat) -> None:
    image = ax.imshow(np.array(panel.values), aspect="auto", origin="lower", cmap="viridis")
    ax.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    canvas.colorbar(image, ax=ax, shrink=0.85)
