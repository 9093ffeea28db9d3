"""Several runs against one server: over rates, or over the number of experts in a batch."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.latency.load import run
from benchmarks.latency.summary import Slo, Summary, summarise
from benchmarks.latency.target import Target
from benchmarks.latency.workload import Arrivals, Popularity, Workload, WorkloadError


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
