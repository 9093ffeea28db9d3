"""Pictures of a domain's document (extra `bench`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the document holds; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    name = document["domain"]
    written = [_save(_densities(document), folder / f"quality-{name}.png")]
    if document.get("curves"):
        written.append(_save(_curves(document), folder / f"frank-wolfe-{name}.png"))
    return written


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=100)
    return path


def _densities(document: Mapping[str, Any]) -> Figure:
    """Normalised accuracy over the share of entries, one line a backbone, one panel a kind of expert."""
    kinds = list(dict.fromkeys(line["expert"]["kind"] for line in document["rows"] if line["expert"]))
    figure = Figure(figsize=(4.4 * max(1, len(kinds)), 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(kinds)), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=False):
        for row in dict.fromkeys(line["row"] for line in document["rows"]):
            points = sorted(
                (100 * (line["expert"]["density"] if line["expert"] else 0), 100 * line["normalized"]["mean"])
                for line in document["rows"]
                if line["row"] == row
                and (
                    line["expert"] is None or (line["expert"]["kind"], line["expert"]["storage"]) == (kind, "bfloat16")
                )
            )
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=row)
        axes.axhline(100, color="grey", linestyle="--", linewidth=0.8)
        axes.set(title=f"{kind} experts", xlabel="entries kept, % of each row")
    panels[0].set_ylabel("% of the individual fine-tunes")
    panels[-1].legend(fontsize="x-small", loc="lower right")
    return figure


def _curves(document: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _lines(left, document["curves"]["irrelevant"], "extra", "irrelevant fine-tunes added to four relevant ones")
    _lines(right, document["curves"]["relevant"], "models", "relevant fine-tunes in the pool")
    left.set_ylabel("accuracy, mean of the target tasks")
    right.legend(fontsize="x-small")
    return figure


def _lines(axes: Axes, points: list[dict[str, float]], x: str, label: str) -> None:
    for method in (key for key in points[0] if key != x):
        axes.plot([point[x] for point in points], [point[method] for point in points], marker="o", label=method)
    axes.set_xlabel(label)
