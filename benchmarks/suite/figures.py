"""Figures by name: what a report's numbers become, and how two collections of them differ."""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = Mapping[str, tuple[float, ...]]
"""Name → the figure of each repetition."""


class FiguresError(ValueError):
    """A file that holds no figures; the message names it."""


@dataclass(frozen=True)
class Change:
    """A figure that is in both collections.

    Attributes:
        name: of the figure.
        before, after: medians over the repetitions.
        spread: the larger of the two ranges, relative to `before`.
        moved: whether no repetition of one reaches into the range of the other, and the medians differ by more than
            `threshold`.
    """

    name: str
    before: float
    after: float
    spread: float
    moved: bool

    @property
    def relative(self) -> float:
        """Change over `before`; 0 if both are 0."""
        if self.before == 0:
            return 0.0 if self.after == 0 else float("inf")
        return self.after / self.before - 1


def numbers(report: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a JSON document by the path to them; those in lists count by their place."""
    if isinstance(report, bool) or report is None:
        return
    if isinstance(report, int | float):
        yield prefix, float(report)
    elif isinstance(report, Mapping):
        for key, value in report.items():
            yield from numbers(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(report, list):
        for place, value in enumerate(report):
            yield from numbers(value, f"{prefix}/{place}")


def read(path: Path) -> Figures:
    """Figures of a results file.

    Raises:
        FiguresError: the file does not exist, or is not such a file.
    """
    try:
        figures = json.loads(path.read_text())["figures"]
        return {str(name): tuple(map(float, values)) for name, values in figures.items() if values}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FiguresError(f"{path} is not a file that `python -m benchmarks.suite` wrote: {error}") from error


def compare(before: Figures, after: Figures, threshold: float) -> list[Change]:
    """Figures that both have, the largest relative change first."""
    changes = []
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        apart = max(old) < min(new) or max(new) < min(old)
        middle = statistics.median(old)
        ranges = max(max(old) - min(old), max(new) - min(new))
        spread = ranges / abs(middle) if middle else 0.0
        change = Change(name, middle, statistics.median(new), spread, moved=False)
        moved = apart and abs(change.relative) > threshold
        changes.append(Change(name, change.before, change.after, spread, moved))
    return sorted(changes, key=lambda change: -abs(change.relative))
