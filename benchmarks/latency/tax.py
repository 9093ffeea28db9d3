"""What distinct experts cost over the backbone, and the floor that bytes set."""

import statistics
from collections.abc import Sequence

from benchmarks.latency.sweep import Run

BYTES_A_WEIGHT = 2
BYTES_AN_ENTRY = 4
"""A bfloat16 value and a 16-bit column number."""


def tax(runs: Sequence[Run]) -> dict[int, float]:
    """Median time per token by number of experts, over the backbone's in the same round; medians of the rounds."""
    found: dict[int, list[float]] = {}
    backbone = 0.0
    for run in runs:
        if run.summary.tpot_ms is None:
            continue
        if run.distinct == 0:
            backbone = run.summary.tpot_ms.p50
        if backbone:
            found.setdefault(run.distinct, []).append(run.summary.tpot_ms.p50 / backbone)
    return {count: round(statistics.median(ratios), 3) for count, ratios in sorted(found.items())}


def floor(distinct: int, density: float) -> float:
    """Bytes that a step reads over those of the weights alone, where each distinct expert's entries are read once."""
    return 1 + distinct * density * BYTES_AN_ENTRY / BYTES_A_WEIGHT
