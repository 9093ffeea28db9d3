"""From the JSON document to the tables people read."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.report import Spread

Line = Mapping[str, Any]
Column = tuple[Any, ...]
"""Kind, density and storage of an expert; empty for the backbone alone."""

KINDS = ("data-free", "calibrated")


def markdown(document: Mapping[str, Any]) -> str:
    """All tables: method × experts with each task's own expert, the same routed, the router, and the curves.

    Figures are normalised, in per cent of the individual fine-tunes, except the curves' accuracies.
    """
    rows: Sequence[Line] = document["rows"]
    parts = [_table("", rows, _columns(rows))]
    if head := document.get("head_bytes"):
        share = 100 * head / document["backbone_bytes"]
        parts.append(f"A task's own classifier, the same in every cell and not counted above: {share:.2f} % more.")
    routed = [line | line["routed"] for line in rows if "routed" in line]
    if routed:
        parts.append(_table(", routed", routed, _columns(routed)))
    if document.get("router"):
        parts.append(_router(document["router"]))
    for name, points in (document.get("curves") or {}).items():
        parts.append(_curve(name, points))
    return "\n\n".join(parts)


def _columns(rows: Sequence[Line]) -> dict[Column, str]:
    """What the columns are and what stands above them."""
    found: dict[Column, str] = {}
    for line in rows:
        expert = line["expert"]
        if expert is None:
            found[()] = "alone"
        else:
            storage = "" if expert["storage"] == "bfloat16" else f" {expert['storage']}"
            found[_column(line)] = f"{expert['kind']} {100 * expert['density']:g} %{storage}"
    return {column: found[column] for column in sorted(found, key=_place)}


def _place(column: Column) -> tuple[int, str, float]:
    """The backbone alone, data-free experts, calibrated ones; of each the wider values and the fewer entries first."""
    if not column:
        return -1, "", 0.0
    kind, density, storage = column
    return KINDS.index(kind), storage, density


def _column(line: Line) -> Column:
    expert = line["expert"]
    return () if expert is None else (expert["kind"], expert["density"], expert["storage"])


def _table(title: str, rows: Sequence[Line], columns: Mapping[Column, str]) -> str:
    cells = {(line["row"], _column(line)): Spread(**line["normalized"]).percent(line["seeds"]) for line in rows}
    scales = {line["row"]: line["chosen"]["lambda"] for line in rows if "lambda" in line["chosen"]}
    sizes = {_column(line): line["share_of_backbone"] for line in rows if line["expert"] is not None}
    lines = [_line([f"backbone{title}", "λ", *columns.values()]), "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(line["row"] for line in rows):
        lines.append(_line([name, f"{scales.get(name, '')}", *(cells.get((name, column), "") for column in columns)]))
    share = [f"{100 * sizes[column]:.2f} %" if column in sizes else "" for column in columns]
    return "\n".join([*lines, _line(["bytes of an expert, of the backbone's", "", *share])])


def _router(found: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key, value in found[0].items() if isinstance(value, int | float)]
    lines = [_line(["router, seed", *keys]), "|---" * (len(keys) + 1) + "|"]
    lines += [_line([str(seed), *(f"{one[key]:.4g}" for key in keys)]) for seed, one in enumerate(found)]
    return "\n".join(lines)


def _curve(name: str, points: Sequence[Mapping[str, float]]) -> str:
    count, *methods = points[0]
    lines = [_line([f"{name}: {count}", *methods]), "|---" * (len(methods) + 1) + "|"]
    lines += [_line([f"{point[count]:g}", *(f"{point[method]:.3f}" for method in methods)]) for point in points]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
