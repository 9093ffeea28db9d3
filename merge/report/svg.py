"""Small drawings in SVG: a line chart, bars and a table of coloured cells.

Colours are the page's CSS variables, so that a drawing follows the reader's light or dark setting.
"""

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

Number = float | None
Format = Callable[[float], str]


def line_chart(
    curves: Sequence[tuple[str, Sequence[float], Sequence[Number]]], x_label: str, y_label: str, width: int = 640
) -> str:
    """Curves over common axes. y is logarithmic if it spans more than a factor of 30, and then ends at 1/1000.

    Args:
        curves: label, x and y; a curve breaks where y is None.
        x_label: written along the x axis.
        y_label: written along the y axis.
        width: of the drawing, in pixels.
    """
    height, left, top, bottom = 300, 58, 14, 46
    numbers = [y for _, _, ys in curves for y in ys if y is not None]
    highest, positive = max(numbers, default=1.0) or 1.0, [y for y in numbers if y > 0]
    log = bool(positive) and highest / min(positive) > 30
    floor_y = max(min(positive, default=1.0), highest / 1000) if log else 0.0
    low, high = (floor(log10(floor_y)), ceil(log10(highest) + 1e-9)) if log else (0.0, _round_up(highest))
    right = max((x for _, xs, _ in curves for x in xs), default=1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        level = (max(log10(y), low) if y > 0 else low) if log else y
        share = (level - low) / ((high - low) or 1)
        return left + x / right * (width - left - 12), top + (1 - share) * (height - top - bottom)

    parts = []
    ticks = [10.0**e for e in range(int(low), int(high) + 1)] if log else [high * i / 4 for i in range(5)]
    for tick in ticks:
        _, y = place(0, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 8}" y="{y + 4:.1f}">{tick:.3g}</text>')
    for i in range(6):
        x, _ = place(right * i / 5, high)
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{height - bottom + 18}">{right * i / 5:.2g}</text>')
    for number, (label, xs, ys) in enumerate(curves):
        for run in _runs(xs, ys):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in run))
            parts.append(f'<polyline class="curve c{number}" points="{path}"><title>{escape(label)}</title></polyline>')
        parts.append(_key(number, label, left + 12 + 190 * number, top + 2))
    parts.append(f'<text class="axis mid" x="{(left + width) / 2}" y="{height - 8}">{escape(x_label)}</text>')
    parts.append(
        f'<text class="axis mid" transform="translate(13 {(height - bottom + top) / 2}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return _svg(width, height, parts, f"{y_label} over {x_label}")


def bar_chart(names: Sequence[str], values: Sequence[float], texts: Sequence[str], label: str, width: int = 560) -> str:
    """One bar a name, with a text at its end."""
    row, left = 24, _margin(names)
    largest = max(values, default=0.0) or 1.0
    parts = []
    for i, (name, value, text) in enumerate(zip(names, values, texts, strict=True)):
        length = (width - left - 110) * value / largest
        parts.append(f'<text class="tick end" x="{left - 8}" y="{row * i + 16}">{escape(name)}</text>')
        parts.append(f'<rect class="bar" x="{left}" y="{row * i + 3}" width="{length:.1f}" height="17" rx="3"/>')
        parts.append(f'<text class="tick" x="{left + length + 7:.1f}" y="{row * i + 16}">{escape(text)}</text>')
    return _svg(width, row * len(names) + 4, parts, label)


def cell_table(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Number]],
    label: str,
    text: Format,
    usual: float = 0.0,
    full: float = 0.0,
) -> str:
    """A table of cells coloured by how far a value is from the usual one; below it, in the second colour.

    Args:
        rows: names.
        columns: names.
        values: one row a name; None is an empty cell.
        label: what the table is of.
        text: writes a value.
        usual: the value that has no colour.
        full: the distance from it that has the full colour, at least; a larger one found takes its place.
    """
    cell, high, left, top = 50, 30, _margin(rows), 20 + int(4.8 * max(map(len, columns), default=0))
    largest = max([full, *(abs(v - usual) for row in values for v in row if v is not None)]) or 1.0
    parts = []
    for j, name in enumerate(columns):
        x, y = left + cell * j + cell / 2, top - 8
        parts.append(f'<text class="tick" transform="translate({x:.0f} {y}) rotate(-40)">{escape(name)}</text>')
    for i, row in enumerate(rows):
        y = top + high * i
        parts.append(f'<text class="tick end" x="{left - 8}" y="{y + 19}">{escape(row)}</text>')
        for column, value, j in zip(columns, values[i], range(len(columns)), strict=True):
            if value is None:
                continue
            share = abs(value - usual) / largest
            x, sign, ink = left + cell * j, "minus" if value < usual else "plus", " on" if share > 0.6 else ""
            parts.append(
                f'<g><title>{escape(row)}, {escape(column)}: {escape(text(value))}</title><rect class="cell {sign}" '
                f'x="{x}" y="{y}" width="{cell - 2}" height="{high - 2}" rx="4" fill-opacity="{share:.3f}"/>'
                f'<text class="value mid{ink}" x="{x + cell / 2 - 1}" y="{y + 18}">{escape(text(value))}</text></g>'
            )
    slanted = int(4.2 * max(map(len, columns), default=0))
    return _svg(left + cell * len(columns) + slanted, top + high * len(rows) + 2, parts, label)


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"


def _key(number: int, label: str, x: float, y: float) -> str:
    line = f'<line class="curve c{number}" x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}"/>'
    return line + f'<text class="tick" x="{x + 29}" y="{y + 4}">{escape(label)}</text>'


def _runs(xs: Sequence[float], ys: Sequence[Number]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 3, 4, 6, 8, 10 times a power of ten."""
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _margin(names: Sequence[str]) -> int:
    return 14 + int(7.2 * max(map(len, names), default=0))
