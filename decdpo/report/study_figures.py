"""Figures of one or more panels: means over a sample with their range, as PNG and SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from decdpo.report.canvas import blank, drawing, picture, save
from decdpo.report.looks import Look, looks, subject

CROWD = 3
"""More curves than this in one panel have bars at their markers in place of bands."""
FEW = 6
"""Several curves of so many points or fewer have bars as well: their bands would be one blot."""
APART = 3.0
"""Points by which the curves of a crowd are moved aside, so that their bars lie apart."""


@dataclass(frozen=True)
class Line:
    """One curve: x and mean, low, high, each (K,).

    style : "line", "points" or "dashed". about : whose look it has; by default what its label says.
    sample : how many values are behind a mean, at most.
    """

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    style: str = "line"
    about: str = ""
    sample: int = 1

    @classmethod
    def of(
        cls,
        label: str,
        points: Sequence[tuple[float, Sequence[float]]],
        style: str = "line",
        about: str = "",
    ) -> "Line":
        """Make a curve from (x, values of the sample), its range from least to largest."""
        return cls(
            label,
            tuple(x for x, _ in points),
            tuple(float(np.mean(v)) for _, v in points),
            tuple(min(v) for _, v in points),
            tuple(max(v) for _, v in points),
            style,
            about,
            max((len(v) for _, v in points), default=1),
        )

    @property
    def subject(self) -> str:
        """The name that has its look."""
        return self.about or subject(self.label)

    @property
    def ranges(self) -> bool:
        """Whether it has a range to be shown."""
        return self.low != self.high


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
    """Panels side by side; ``name`` is that of the files. sample : what the means are over.

    same_y : whether all panels have the y-axis of the one that needs most.
    """

    name: str
    panels: tuple[Panel | Heat, ...]
    columns: int = 3
    title: str = ""
    sample: str = "seeds"
    same_y: bool = False

    @property
    def lines(self) -> list[Line]:
        """The lines of all panels."""
        return [line for panel in self.panels if isinstance(panel, Panel) for line in panel.lines]


@picture
def draw(figure: Figure, folder: Path, kinds: Sequence[str] = ("png", "svg")) -> list[str]:
    """Write ``folder``/NAME.png and NAME.svg, and return the names.

    The same numbers give the same SVG. Raises ``EnvironmentFault`` without matplotlib or room to
    write.
    """
    names = [f"{figure.name}.{kind}" for kind in kinds]
    with drawing() as matplotlib:
        canvas = paint(matplotlib, figure)
        for name in names:
            save(canvas, folder / name)
    return names


def paint(matplotlib: Any, figure: Figure) -> Any:
    """Return the figure as one of matplotlib's."""
    columns = max(min(figure.columns, len(figure.panels)), 1)
    rows = max(-(-len(figure.panels) // columns), 1)
    names = looks(line.subject for line in figure.lines)
    width = 5.2 * columns
    canvas = blank(matplotlib, width, 4.0 * rows + 0.6)
    if figure.title:
        canvas.suptitle(figure.title)
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(figure.panels) :]:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, figure.panels, strict=False):
        if isinstance(panel, Heat):
            _heat(canvas, ax, panel)
        else:
            for label, handle in _panel(matplotlib, ax, panel, names).items():
                handles.setdefault(label, handle)
    if figure.same_y:
        ends = [ax.get_ylim() for ax in axes[: len(figure.panels)]]
        for ax in axes[: len(figure.panels)]:
            ax.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    _legend(canvas, handles, note(figure), width)
    return canvas


def note(figure: Figure) -> str:
    """Return what the bands and bars of a figure are, "" where it has none."""
    found = []
    for panel in figure.panels:
        if isinstance(panel, Panel):
            crowd = _crowded(panel)
            for line in (line for line in panel.lines if line.ranges):
                bars = line.style == "points" or (crowd and line.style == "line")
                found.append("bars" if bars else "bands")
    if not found:
        return ""
    size = max(line.sample for line in figure.lines)
    text = f"means over {size} {figure.sample}; {' and '.join(sorted(set(found)))} reach from the "
    text += "least to the largest of them"
    if any(isinstance(p, Panel) and _crowded(p) for p in figure.panels):
        text += "; curves are moved aside a little, so that their bars lie apart"
    return text


def _crowded(panel: Panel) -> bool:
    ranges = [len(line.x) for line in panel.lines if line.style == "line" and line.ranges]
    return len(ranges) > CROWD or (len(ranges) > 1 and max(ranges) <= FEW)


def _panel(matplotlib: Any, ax: Any, panel: Panel, names: dict[str, Look]) -> dict[str, Any]:
    """Draw the lines of a panel; return what stands for each label in a legend."""
    handles = {}
    crowd = _crowded(panel)
    for k, line in enumerate(panel.lines):
        look = names[line.subject]
        if line.style == "points":
            handles[line.label] = _points(ax, line, look)
            continue
        # Of curves that lie on one another the later ones are thinner, so that all are seen.
        wide = 2.6 - 1.4 * k / max(len(panel.lines) - 1, 1) if len(panel.lines) > 1 else 1.6
        moved = ax.transData
        if crowd and line.style == "line":
            points = APART * (k - (len(panel.lines) - 1) / 2) / 72
            shift = matplotlib.transforms.ScaledTranslation(points, 0, ax.figure.dpi_scale_trans)
            moved = moved + shift
        handles[line.label] = _curve(ax, line, look, k, wide, crowd, moved)
        # matplotlib takes no limits from curves that are moved aside.
        ends = [(x, y) for ys in (line.mean, line.low, line.high) for x, y in zip(line.x, ys)]
        ax.update_datalim([(x, y) for x, y in ends if y > 0 or not panel.log_y])
        ax.autoscale_view()
    _scales(ax, panel)
    ax.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    ax.grid(alpha=0.3, which="major")
    return handles


def _points(ax: Any, line: Line, look: Look) -> Any:
    """Draw single points, hollow, so that those on one another are seen; bars where they vary."""
    error = np.abs(np.array([line.low, line.high]) - np.array(line.mean)) if line.ranges else None
    return ax.errorbar(line.x, line.mean, error, fmt=look.marker, color=look.colour, mfc="none",
                       ms=6, capsize=2, lw=1)  # fmt: skip


def _curve(
    ax: Any, line: Line, look: Look, k: int, width: float, crowd: bool, moved: Any
) -> Any:
    sparse = max(1, len(line.x) // 8)
    every = slice(k % sparse, None, sparse)
    dashes = "--" if line.style == "dashed" else "-"
    (handle,) = ax.plot(
        line.x, line.mean, dashes, color=look.colour, lw=width, markevery=every, ms=6,
        marker=look.marker if line.style == "line" else "", mec="white", mew=0.6, transform=moved,
    )  # fmt: skip
    if not line.ranges:
        return handle
    if crowd and line.style == "line":
        mean, low, high = (np.array(v)[every] for v in (line.mean, line.low, line.high))
        ax.errorbar(np.array(line.x)[every], mean, np.abs([low - mean, high - mean]), fmt="none",
                    ecolor=look.colour, lw=1, capsize=2, transform=moved)  # fmt: skip
    else:
        ax.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.18, lw=0)
    return handle


def _legend(canvas: Any, handles: dict[str, Any], about: str, width: float) -> None:
    """Name the series, and say what their ranges are, below all panels."""
    if not handles:
        return
    # matplotlib breaks no lines: what is longer than the figure is wide would be cut off.
    about = fill(about, int(13 * width))
    longest = max(len(label) for label in handles)
    columns = max(min(int(13 * width / (longest + 7)), len(handles)), 1)
    # Rows of like length, where there are several.
    columns = -(-len(handles) // -(-len(handles) // columns))
    # An entry that begins with "_" would be left out.
    labels = [f" {label}" if label.startswith("_") else label for label in handles]
    canvas.legend(
        list(handles.values()), labels, loc="outside lower center", ncols=columns, fontsize=8,
        title=about or None, title_fontsize=8, frameon=False, markerscale=1.0,
    )  # fmt: skip


def _scales(ax: Any, panel: Panel) -> None:
    if panel.log_x:
        ax.set_xscale("log")
        _log_ticks(ax.xaxis, *ax.get_xlim())
    elif all(float(x).is_integer() for line in panel.lines for x in line.x):
        ax.xaxis.get_major_locator().set_params(integer=True)
    if panel.log_y and any(value > 0 for line in panel.lines for value in line.mean):
        ax.set_yscale("log", nonpositive="mask")
        _log_ticks(ax.yaxis, *ax.get_ylim())


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
