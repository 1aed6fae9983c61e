"""Figures of studies: what the axes say."""

import re

import pytest

from decdpo.report.study_figures import Figure, Line, Panel, draw

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
