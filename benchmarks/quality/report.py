"""From cells to the JSON document."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.quality.routing import Routing, routed_accuracy
from benchmarks.quality.table import Cell, Cut


@dataclass(frozen=True)
class Spread:
    """Mean over the seeds, and the standard deviation between them (0 for one seed)."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value for each seed."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def percent(self, seeds: int) -> str:
        """As text, in per cent, with the spread if there are several seeds."""
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.spread:.1f}" if seeds > 1 else "")


def entry(
    row: str,
    cut: Cut | None,
    cells: Sequence[Cell],
    individual: Sequence[Cell],
    sizes: tuple[int, int],
    routing: Sequence[Routing] = (),
    alone: Sequence[Cell] = (),
    chosen: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One line of the document.

    Args:
        row: the backbone's name.
        cut: the expert's kind; None for the backbone alone.
        cells: one a seed.
        individual: the fine-tunes' cells of the same seeds.
        sizes: bytes of a backbone, and of its matrices that experts have entries of.
        routing: the router's choices of the same seeds, if there are any.
        alone: the backbone's own cells of the same seeds, if `routing` is given.
        chosen: the hyper-parameters.
    """
    size = statistics.fmean(cell.bytes for cell in cells)
    result: dict[str, Any] = {
        "row": row,
        "expert": None if cut is None else asdict(cut),
        "seeds": len(cells),
        "tasks": _tasks([cell.accuracy() for cell in cells], individual),
        **_averages([cell.accuracy() for cell in cells], individual),
        "bytes": size,
        "share_of_backbone": size / sizes[0],
        "share_of_matrices": size / sizes[1],
        "chosen": dict(chosen or {}),
    }
    if routing and cut is not None:
        routed = [routed_accuracy(*parts) for parts in zip(routing, cells, alone, strict=True)]
        result["routed"] = _averages(routed, individual)
    return result


def _tasks(accuracy: Sequence[Mapping[str, float]], individual: Sequence[Cell]) -> dict[str, dict[str, float]]:
    found = {}
    for task in accuracy[0]:
        mean = statistics.fmean(one[task] for one in accuracy)
        own = statistics.fmean(cell.accuracy()[task] for cell in individual)
        found[task] = {"accuracy": round(mean, 4), "normalized": round(mean / own, 4) if own else 0.0}
    return found


def _averages(accuracy: Sequence[Mapping[str, float]], individual: Sequence[Cell]) -> dict[str, Any]:
    own = [cell.accuracy() for cell in individual]
    plain = [statistics.fmean(one.values()) for one in accuracy]
    ratios = [
        statistics.fmean(one[task] / best[task] for task in one if best[task])
        for one, best in zip(accuracy, own, strict=True)
    ]
    return {"average": asdict(Spread.of(plain)), "normalized": asdict(Spread.of(ratios))}
