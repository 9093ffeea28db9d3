"""The scenarios that the plan is drawn from: each placement at each number of experts, and their picture."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.capacity.card import Card
from benchmarks.capacity.placement import PLACEMENTS
from benchmarks.capacity.simulate import Scenario, highest_rate, simulate


def sweep(card: Card, base: Scenario, experts: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Simulate `base` with every placement and number of experts.

    Args:
        card: the replicas' speeds.
        base: everything else; its rate is what all are compared at.
        experts: numbers of experts; slots are never more.
        say: receives lines about the progress.

    Returns:
        A row a scenario: `simulate`'s at the base's rate, and the `highest_rate` that it sustains.
    """
    rows = []
    for number in experts:
        for placement in PLACEMENTS:
            scenario = replace(base, placement=placement, experts=number, slots=min(base.slots, number))
            row = simulate(card, scenario) | {"highest_rate": round(highest_rate(card, scenario), 3)}
            say(f"{number} experts, {placement}: up to {row['highest_rate']:.2f} requests/s")
            rows.append(row)
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw, over the number of experts, the load that each placement sustains and the bytes of its experts' loads."""
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
