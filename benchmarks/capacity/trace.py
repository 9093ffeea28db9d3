"""The requests of a load generator's workload, as the simulation's."""

from collections.abc import Sequence

from benchmarks.capacity.replica import Job
from serve.bench.workload import Arrivals, Workload


def trace(workload: Workload, arrivals: Arrivals, experts: Sequence[str]) -> list[Job]:
    """The requests that `serve.bench` sends for a workload with experts, as the simulation's."""
    items = workload.items(experts)[workload.warm_up :]
    times = arrivals.times(len(items), workload.random())
    return [
        Job(at, experts.index(item.expert or ""), len(item.prompt), item.tokens, item.tokens)
        for item, at in zip(items, times, strict=True)
    ]
