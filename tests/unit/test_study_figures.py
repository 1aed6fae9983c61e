"""Figures: what the axes say, how series are told apart, and that nothing of the user's matters."""

import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import judge_studies
import numpy as np
import pytest
from limits import HANG

from decdpo.report import compare, curves
from decdpo.report.canvas import drawing, plain
from decdpo.report.curves import plot_run
from decdpo.report.looks import COLOURS, GRAPHS, Look, looks
from decdpo.report.study_figures import Figure, Line, Panel, draw, note, paint
from decdpo.studies.catalogue import builtin
from decdpo.studies.table import Table
from decdpo.topology.names import GRAPHS as ALL_GRAPHS

pytest.importorskip("matplotlib")


def words(low, high, folder):
    """Draw a line from low to high on log axes; returns the texts of the SVG picture."""
    xs = (low, high)
    panel = Panel("", "", "", (Line("line", xs, xs, xs, xs),), log_x=True, log_y=True)
    draw(Figure("f", (panel,)), folder)
    texts = re.findall(r"<text[^>]*>(.*?)</text>", (folder / "f.svg").read_text(), re.DOTALL)
    return [text for text in texts if text.strip() not in ("", "line")]


@pytest.mark.parametrize(("low", "high"), [(0.26, 0.29), (0.21, 0.45), (0.3, 6), (1e-3, 5e-2)])
def test_a_log_axis_of_few_decades_names_some_values_and_not_too_many(tmp_path, low, high):
    named = [float(word.replace("\N{MINUS SIGN}", "-")) for word in words(low, high, tmp_path)]
    assert all(0.5 * low < value < 2 * high for value in named)
    assert 2 * 3 <= len(named) <= 2 * 8


def test_a_log_axis_of_many_decades_names_powers_of_ten(tmp_path):
    named = words(1e-6, 1, tmp_path)
    assert 2 * 4 <= len(named) <= 2 * 8
    assert all("10" in word for word in named)


def flat(label, height=1.0, spread=0.0, style="line", seeds=5):
    """A line at one height over eleven rounds, of seeds that differ by ``spread``."""
    values = [height + spread * s for s in range(seeds)]
    return Line.of(label, [(float(t), values) for t in range(11)], style)


def drawn(figure):
    """(colour, marker) of every named series of each panel, as matplotlib has them."""
    with drawing() as matplotlib:
        canvas = paint(matplotlib, figure)
        (legend,) = canvas.legends
        handles = legend.legend_handles
        named = {t.get_text(): h for t, h in zip(legend.get_texts(), handles, strict=True)}
        lines = [
            [(line.get_color(), line.get_marker()) for line in ax.lines] for ax in canvas.axes
        ]
        return named, lines, [ax.get_legend() for ax in canvas.axes], legend


def test_a_graph_has_one_look_in_every_panel_and_figure():
    one = Figure("a", (
        Panel("", "", "", (flat("ring"), flat("path"), flat("E=1"))),
        Panel("", "", "", (flat("path"), flat("E=1"))),
    ))  # fmt: skip
    two = Figure("b", (Panel("", "", "", (flat("star"), flat("DecDPO path"), flat("DecDPO")),),))
    _, (first, second), _, _ = drawn(one)
    _, (other,), _, _ = drawn(two)
    assert first[1] == second[0] == other[1]
    assert first[2] == second[1] and len({*first}) == 3
    assert set(ALL_GRAPHS) == set(GRAPHS)


def test_many_series_are_all_told_apart():
    assert len({Look.number(k) for k in range(130)}) == 130
    names = [*GRAPHS, *(f"kind {k}" for k in range(40))]
    found = looks(names)
    assert len(set(found.values())) == len(names)
    assert len({look.colour for look in looks("abcdefgh").values()}) == 8


def test_legends_lie_outside_of_the_data_and_name_each_series_once():
    lines = tuple(flat(f"series {k}", k) for k in range(12))
    named, _, inside, legend = drawn(Figure("a", (Panel("", "", "", lines),) * 2))
    assert list(named) == [f"series {k}" for k in range(12)] and inside == [None, None]
    assert legend._outside_loc == "lower"


def test_bands_and_bars_say_what_they_are():
    few = Figure("a", (Panel("", "", "", (flat("a", spread=0.1), flat("b", spread=0.1))),))
    assert note(few).startswith("means over 5 seeds; bands reach from the least to the largest")
    many = tuple(flat(str(k), spread=0.1) for k in range(5))
    assert "; bars reach from" in note(Figure("a", (Panel("", "", "", many),)))
    dots = (flat("a", spread=0.1, style="points"),)
    assert "; bars reach" in note(Figure("a", (Panel("", "", "", dots),)))
    assert note(Figure("a", (Panel("", "", "", (flat("a", seeds=1),)),))) == ""
    assert drawn(few)[3].get_title().get_text().replace("\n", " ") == note(few)
    short = tuple(Line.of(name, [(1.0, [1.0, 2.0]), (3.0, [2.0, 3.0])]) for name in "ab")
    assert "; bars reach from" in note(Figure("a", (Panel("", "", "", short),)))


def test_curves_on_one_another_differ_in_width_and_markers_do_not_coincide():
    lines = tuple(flat(name) for name in ("ring", "path", "star"))
    with drawing() as matplotlib:
        (ax,) = paint(matplotlib, Figure("a", (Panel("", "", "", lines),))).axes
        widths = [line.get_linewidth() for line in ax.lines]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 3


def test_markers_and_bars_of_a_crowd_do_not_hide_one_another():
    crowd = tuple(flat(str(k), spread=0.1) for k in range(5))
    with drawing() as matplotlib:
        (ax,) = paint(matplotlib, Figure("a", (Panel("", "", "", crowd),))).axes
        curves = [line for line in ax.lines if line.get_marker() in "osD^v"]
        places = {line.get_transform().transform((0.0, 1.0))[0] for line in curves}
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert len(curves) == len(places) == 5
    # All eleven rounds and all five values are inside, and nothing but them.
    assert -2 < left <= 0 and 10 <= right < 12 and 0.8 < low <= 1 and 1.4 <= high < 1.6


def test_counts_have_whole_ticks_and_panels_that_are_compared_one_scale():
    counts = Line.of("a", [(0.0, [0.7]), (1.0, [0.6]), (3.0, [0.5])])
    shares = Line.of("a", [(0.0, [0.1]), (0.5, [0.9])])
    panels = (Panel("", "", "", (counts,)), Panel("", "", "", (shares,)))
    with drawing() as matplotlib:
        canvas = paint(matplotlib, Figure("f", panels, same_y=True))
        canvas.canvas.draw()
        whole, parts = (ax.get_xticks() for ax in canvas.axes)
        one, other = (ax.get_ylim() for ax in canvas.axes)
    assert all(float(x).is_integer() for x in whole)
    assert not all(float(x).is_integer() for x in parts)
    assert one == other and one[0] < 0.1 and one[1] > 0.9


def test_what_ranges_are_is_not_cut_off_at_the_edges():
    lines = tuple(flat(name, height, 0.1, seeds=3) for height, name in enumerate("abcd"))
    with drawing() as matplotlib:
        canvas = paint(matplotlib, Figure("f", (Panel("p", "x", "y", lines),)))
        canvas.canvas.draw()
        (legend,) = canvas.legends
        box, edges = legend.get_title().get_window_extent(), canvas.bbox
        assert "moved aside" in legend.get_title().get_text().replace("\n", " ")
        assert edges.x0 <= box.x0 and box.x1 <= edges.x1


def test_names_that_need_two_rows_fill_both():
    lines = tuple(flat(f"a series of a long name {k}", k) for k in range(7))
    *_, legend = drawn(Figure("a", (Panel("", "", "", lines),) * 3))
    assert legend._ncols == 4


def test_kept_tables_are_drawn_under_their_own_names(tmp_path, monkeypatch, capsys):
    folder = Path(__file__).parents[2] / "data" / "studies"
    for name in ("low-communication.csv", "hh-low-communication.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    monkeypatch.setattr(sys, "argv", ["judge", str(tmp_path), "--draw", str(tmp_path / "out")])
    judge_studies.main()
    assert "hh-low-communication  " in capsys.readouterr().out
    names = {f"{name}.{kind}" for name in ("low-communication", "hh-low-communication")
             for kind in ("png", "svg")}  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def advised(measured_mean, last):
    roles = {f"role_{b}": "candidate" for b in ("rounds", "messages", "time")}
    row = {"cell": "c", "seed": 0, "setting": "DecDPO ring, E=1", "predicted": 7.0, **roles}
    return Table([{**row, "mean_gradient_sq": measured_mean, "gradient_sq": last}])


def test_a_bound_on_a_mean_is_drawn_against_the_mean():
    (figure,) = builtin("advisor").figures(advised(3.0, 0.001))
    (ring,) = [line for line in figure.panels[0].lines if line.label == "DecDPO ring"]
    assert ring.x == pytest.approx((7.0,)) and ring.mean == (3.0,)
    assert "mean" in figure.panels[0].xlabel and "mean" in figure.panels[0].ylabel


def run_with(code, **environment):
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG)


DRAW = """
from pathlib import Path
from decdpo.report.curves import plot_run
plot_run([{"round": t, "loss": 1.0 / t} for t in (1, 2)], Path(r"OUT") / "curves.png", "a title")
import os
print(os.environ["MPLBACKEND"])
"""


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no", "TkAgg"])
def test_figures_do_not_depend_on_the_backend_of_a_notebook(tmp_path, backend):
    done = run_with(DRAW.replace("OUT", str(tmp_path)), **os.environ | {"MPLBACKEND": backend})
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, backend, "")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_figure_says_nothing_on_the_terminal(tmp_path):
    # No series to name, a home that cannot be written, a matplotlibrc of the user's.
    (tmp_path / "matplotlibrc").write_text("axes.grid : maybe\nlines.linewidth : 30\n")
    home = tmp_path / "none" / "home"
    settings = {"HOME": str(home), "MPLCONFIGDIR": str(home), "MATPLOTLIBRC": str(tmp_path)}
    code = DRAW.replace("OUT", str(tmp_path)).replace('"loss": 1.0 / t', '"other": 1.0')
    done = run_with(code, **os.environ | settings | {"MPLBACKEND": "agg"})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["cost $5", "_hidden", "$x$ and $", "\u8bad\u7ec3", r"a\frac{"])
def test_any_name_of_a_run_can_be_drawn(tmp_path, recwarn, name):
    figure = Figure("f", (Panel(plain(name), "", "", (flat(plain(name)), flat("b"))),))
    draw(figure, tmp_path)
    assert not recwarn.list
    assert plain(name).replace("\\$", "$")[1:] in (tmp_path / "f.svg").read_text()


def test_a_run_is_drawn_with_what_it_has(tmp_path):
    rows = [{"round": t, "loss": 0.7 - t / 100, "gradient_norm": 0.0} for t in range(4)]
    plot_run(rows, tmp_path / "curves.png", "t")
    plot_run([], tmp_path / "none.png", "t")
    assert all((tmp_path / n).stat().st_mode & 0o777 == 0o644 for n in ("curves.png", "none.png"))
    assert not list(Path(tmp_path).glob(".*")) and np.isfinite(rows[-1]["loss"])


def overlaps(matplotlib, canvas):
    """Return the texts of a figure that lie on one another, or reach out of it."""
    places = {}
    draw_text = matplotlib.text.Text.draw

    def noted(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            places[id(text)] = (text.get_text(), text.get_window_extent(renderer))
        return draw_text(text, renderer, *args, **kwargs)

    # The layout is done in the first drawing, and would note where texts were before.
    canvas.canvas.draw()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.text.Text, "draw", noted)
        canvas.canvas.draw()
    assert len(places) > 4
    drawn = list(places.values())
    found = [
        (a, b)
        for k, (a, one) in enumerate(drawn)
        for b, two in drawn[:k]
        if (both := one.intersection(one, two)) is not None and min(both.width, both.height) > 1
    ]
    whole = canvas.bbox
    outside = [text for text, box in drawn if box.x0 < whole.x0 - 1 or box.x1 > whole.x1 + 1]
    return found + outside


@pytest.mark.parametrize("name", ["advisor", "topology-scaling", "attack", "low-communication"])
def test_no_labels_collide_in_the_figures_of_kept_studies(name):
    folder = Path(__file__).parents[2] / "data" / "studies"
    path = folder / "curves" / f"{name}.csv.gz"
    table = judge_studies.read(path if path.exists() else folder / f"{name}.csv")
    figure = builtin(name.removeprefix("hh-")).figures(table)[0]
    with drawing() as matplotlib:
        assert figure.lines and not overlaps(matplotlib, paint(matplotlib, figure))


def test_panels_of_runs_name_their_units_and_do_not_collide(tmp_path):
    labels = [label for _, _, label, _ in compare.PANELS] + [label for _, label, _ in curves.PANELS]
    assert all(re.search("nats|share|norm|squared", label) for label in labels)
    wide = [Line.of(f"a run of a rather long name {k}", [(t, [0.6 + k]) for t in range(9)])
            for k in range(9)]  # fmt: skip
    panels = [Panel(t, "round", y, tuple(wide), log_y=log) for _, t, y, log in compare.PANELS]
    with drawing() as matplotlib:
        assert not overlaps(matplotlib, paint(matplotlib, Figure("f", tuple(panels))))
        crowded = [Panel("a title " * 12, "round", "", tuple(wide[:1]))] * 3
        assert overlaps(matplotlib, paint(matplotlib, Figure("f", tuple(crowded))))


BLIND = {
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "none": np.eye(3),
}
"""What is left of linear colours (Machado, Oliveira and Fernandes, 2009, severity 1)."""


def lab(colour, seen):
    """Return a colour as CIELAB, as it is seen."""
    part = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = xyz @ np.clip(np.array(seen) @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def palettes():
    """Return the colours of figures, and those of the page in light and dark."""
    style = files("decdpo.report.page").joinpath("assets", "page.css").read_text()
    of_runs = re.findall(r"--c\d: (#\w{6});", style)
    of_parts = re.findall(r"--p\d: (#\w{6});", style)
    assert (len(of_runs), len(of_parts)) == (16, 12)
    return [COLOURS, of_runs[:8], of_runs[8:], of_parts[:6], of_parts[6:]]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("kind", BLIND)
def test_colours_are_told_apart_by_the_colour_blind_too(number, kind):
    seen = [lab(colour, BLIND[kind]) for colour in palettes()[number]]
    apart = [np.linalg.norm(a - b) for k, a in enumerate(seen) for b in seen[:k]]
    assert min(apart) > 12
