import re
from xml.etree import ElementTree

import pytest

from merge.report.svg import bar_chart, cell_table, line_chart


def test_a_curve_is_drawn_to_scale() -> None:
    drawing = line_chart([("a", [0.0, 0.5, 1.0], [0.0, 1.0, 2.0])], "x", "y")
    ElementTree.fromstring(drawing)
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', drawing)[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y2 == pytest.approx(14, abs=0.1)


def test_a_wide_range_is_logarithmic_and_gaps_break_a_curve() -> None:
    drawing = line_chart([("a", [0, 1, 2, 3, 4], [0.01, 0.1, None, 1.0, 0.0])], "x", "y")
    runs = re.findall(r'points="([^"]*)"', drawing)
    assert [len(run.split()) for run in runs] == [2, 2]
    assert {"0.01", "0.1", "1"} <= set(re.findall(r">([0-9.]+)<", drawing))


def test_bars_are_as_long_as_their_values() -> None:
    drawing = bar_chart(["a", "b"], [10.0, 5.0], ["ten", "five"], "bars")
    ElementTree.fromstring(drawing)
    widths = [float(width) for width in re.findall(r'class="bar"[^>]* width="([0-9.]+)"', drawing)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)


def test_cells_are_coloured_from_the_usual_value() -> None:
    drawing = cell_table(["r"], ["a", "b", "c", "d"], [[1.0, 0.5, 0.0, None]], "cells", lambda v: f"{v:.1f}", usual=0.5)
    ElementTree.fromstring(drawing)
    cells = re.findall(r'class="cell (\w+)"[^>]*fill-opacity="([0-9.]+)"', drawing)
    assert cells == [("plus", "1.000"), ("plus", "0.000"), ("minus", "1.000")]


def test_empty_drawings_are_drawings() -> None:
    for drawing in (line_chart([], "x", "y"), bar_chart([], [], [], "b"), cell_table([], [], [], "c", str)):
        ElementTree.fromstring(drawing)
