"""Where each placement breaks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.capacity.placement import PLACEMENTS


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw, over the number of experts, the load that each placement bears and what its experts' loads move."""
    from matplotlib.figure import Figure  # the extra `bench`, needed for the picture alone

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for placement in PLACEMENTS:
        same = [row for row in rows if row["placement"] == placement]
        experts = [row["experts"] for row in same]
        left.plot(experts, [row["highest_rate"] for row in same], marker="o", label=placement)
        right.plot(experts, [row["expert_bytes_per_s"] / 1e6 for row in same], marker="o", label=placement)
    left.set(xscale="log", xlabel="experts", ylabel="requests/s before p99 TTFT > 2 s", ylim=(0, None))
    right.set(xscale="log", xlabel="experts", ylabel="experts moved to slots, MB/s", ylim=(0, None))
    left.legend(fontsize="small")
    figure.savefig(path, dpi=140)
