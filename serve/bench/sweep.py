"""Runs over numbers of experts and over arrivals, and what distinct experts cost over the backbone."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve.bench.load import run
from serve.bench.summary import Slo, Summary, summarise
from serve.bench.target import Target
from serve.bench.workload import Arrivals, Popularity, Workload, WorkloadError


@dataclass(frozen=True)
class Run:
    """One run's settings and figures.

    Attributes:
        arrivals: when requests came.
        popularity: which experts they asked for.
        distinct: experts to choose from; 0: the backbone alone.
        summary: the figures.
    """

    arrivals: Arrivals
    popularity: Popularity
    distinct: int
    summary: Summary

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "arrivals": self.arrivals.kind,
            "rate": self.arrivals.rate or None,
            "users": self.arrivals.users or None,
            "popularity": self.popularity.kind,
            "alpha": self.popularity.alpha if self.popularity.kind == "zipf" else None,
            "distinct": self.distinct,
            **self.summary.as_json(),
        }


def over_arrivals(
    target: Target, workload: Workload, arrivals: Sequence[Arrivals], slo: Slo, say: Callable[[str], None]
) -> list[Run]:
    """The same requests at several rates, one run after another."""
    runs = []
    for each in arrivals:
        say(f"{workload.count} requests, {each.kind} {each.rate or each.users:g}")
        summary = summarise(asyncio.run(run(target, workload, each)), slo)
        distinct = len([name for name in summary.experts if name])
        runs.append(Run(each, workload.popularity, distinct, summary))
    return runs


def over_experts(
    target: Target,
    workload: Workload,
    arrivals: Arrivals,
    counts: Sequence[int],
    rounds: int,
    slo: Slo,
    say: Callable[[str], None],
) -> list[Run]:
    """The same load spread over more and more experts: what each distinct expert of a batch costs.

    Rounds take turns, so that what slows the machine for a while slows all counts alike.

    Raises:
        WorkloadError: the target names fewer experts than a count.
    """
    names = list(target.experts)
    if max(counts) > len(names):
        raise WorkloadError(f"{max(counts)} experts are asked for, and the server names {len(names)}")
    runs = []
    for number in range(rounds):
        for count in counts:
            say(f"round {number + 1} of {rounds}: {count} experts")
            popularity = Popularity("distinct" if count else "backbone")
            some = replace(target, experts={name: target.experts[name] for name in names[:count]})
            drawn = replace(workload, popularity=popularity, seed=workload.seed + number)
            summary = summarise(asyncio.run(run(some, drawn, arrivals)), slo)
            runs.append(Run(arrivals, popularity, count, summary))
    return runs


BYTES_A_WEIGHT = 2
BYTES_AN_ENTRY = 4
"""A bfloat16 value and a 16-bit column number."""


def tax(runs: Sequence[Run]) -> dict[int, float]:
    """Median time per token by number of experts, over the backbone's in the same round; medians of the rounds."""
    found: dict[int, list[float]] = {}
    backbone = 0.0
    for measured in runs:
        if measured.summary.tpot_ms is None:
            continue
        if measured.distinct == 0:
            backbone = measured.summary.tpot_ms.p50
        if backbone:
            found.setdefault(measured.distinct, []).append(measured.summary.tpot_ms.p50 / backbone)
    return {count: round(statistics.median(ratios), 3) for count, ratios in sorted(found.items())}


def floor(distinct: int, density: float) -> float:
    """Bytes that a step reads over those of the weights alone, if each distinct expert's entries are read once."""
    return 1 + distinct * density * BYTES_AN_ENTRY / BYTES_A_WEIGHT
