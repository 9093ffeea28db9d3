"""A run's figures, and its line in the table of all runs."""

from collections.abc import Sequence
from statistics import mean, quantiles
from typing import Any

from benchmarks.many_experts.load import Measured

POPULAR = 5
"""Number of popular experts, which are compared with the rarer half."""


def row(experts: int, users: int, popularity: str, found: Measured) -> dict[str, Any]:
    """The figures of a run."""
    popular = [answer.seconds for answer in found.answers if answer.rank < min(POPULAR, experts // 2)]
    rare = [answer.seconds for answer in found.answers if answer.rank >= experts // 2]
    return {
        "experts": experts,
        "users": users,
        "popularity": popularity,
        "requests_per_s": round(found.finished / found.seconds, 1),
        "engine_cpu_ms_per_step": round(1e3 * found.cpu_seconds / found.steps, 2),
        "planning_cpu_ms_per_step": round(1e3 * found.planning_seconds / found.steps, 3),
        "sequences_per_step": round(found.sequences / found.steps, 1),
        "loads_per_s": round(found.loads / found.seconds, 1),
        "answer_s": _spread([answer.seconds for answer in found.answers]),
        "answer_popular_s": _spread(popular),
        "answer_rare_s": _spread(rare),
    }


HEADER = (
    f"{'experts':>7} {'users':>5} {'drawn':>7} {'req/s':>7} {'ms/step':>8} {'planning':>9} {'seqs':>5}"
    f" {'loads/s':>8}  {'popular p50, p99':>18}  {'rare p50, p99':>18} s"
)


def line(one: dict[str, Any]) -> str:
    """A run's figures under `HEADER`."""
    return (
        f"{one['experts']:>7} {one['users']:>5} {one['popularity']:>7} {one['requests_per_s']:>7}"
        f" {one['engine_cpu_ms_per_step']:>8} {one['planning_cpu_ms_per_step']:>9} {one['sequences_per_step']:>5}"
        f" {one['loads_per_s']:>8}  {_both(one['answer_popular_s']):>18}  {_both(one['answer_rare_s']):>18}"
    )


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, median and 99th percentile; None if there are too few answers for them."""
    if len(seconds) < 2:
        return None
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {"mean": round(mean(seconds), 3), "p50": round(cuts[49], 3), "p99": round(cuts[98], 3)}


def _both(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['p50']:.2f}, {spread['p99']:.2f}"
