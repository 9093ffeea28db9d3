"""The scenarios that the plan is drawn from: each placement at each number of experts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
        say: told of progress.

    Returns:
        A row a scenario: `simulate`'s at the base's rate, and the `highest_rate` that it bears.
    """
    rows = []
    for number in experts:
        for placement in PLACEMENTS:
            scenario = replace(base, placement=placement, experts=number, slots=min(base.slots, number))
            row = simulate(card, scenario) | {"highest_rate": round(highest_rate(card, scenario), 3)}
            say(f"{number} experts, {placement}: up to {row['highest_rate']:.2f} requests/s")
            rows.append(row)
    return rows
