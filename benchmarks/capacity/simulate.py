"""Discrete-event simulation: requests come, replicas step, experts move."""

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from benchmarks.capacity.card import Card
from benchmarks.capacity.placement import Placement, Placer
from benchmarks.capacity.replica import Job, Replica

SLO_TTFT_SECONDS = 2.0


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        placement: which replica gets a request.
        replicas: engines.
        experts: that requests ask for, the i-th with a probability proportional to i^-alpha.
        slots: experts that an engine holds at once.
        rate: requests a second, a Poisson process, at all replicas together.
        alpha: Zipf's exponent.
        batch: sequences in one step.
        prompt: tokens of every prompt.
        output: mean of the tokens of a reply.
        geometric: whether replies' lengths are drawn from a geometric distribution; else all are equal.
        seconds: in which requests come; what is unfinished then still counts as waiting until the end.
        seed: of all that is drawn.
    """

    placement: Placement
    replicas: int
    experts: int
    slots: int
    rate: float
    alpha: float = 1.0
    batch: int = 64
    prompt: int = 64
    output: int = 64
    geometric: bool = True
    seconds: float = 120.0
    seed: int = 0


def simulate(card: Card, scenario: Scenario) -> dict[str, Any]:
    """Run a scenario to the end of its arrivals. The first quarter fills slots and is left out of the latencies.

    Returns:
        The scenario and what came of it; times in seconds, `null` if nothing was finished.
    """
    random = np.random.default_rng(scenario.seed)
    jobs = _jobs(scenario, random)
    replicas = replay(card, scenario, jobs, random, scenario.seconds)
    return asdict(scenario) | _outcome(card, scenario, jobs, replicas)


def replay(
    card: Card, scenario: Scenario, jobs: Sequence[Job], random: np.random.Generator, until: float
) -> list[Replica]:
    """Let jobs arrive at a scenario's replicas, which record when their tokens came.

    Args:
        card: the replicas' speeds.
        scenario: placement, replicas, slots and batch are taken from it.
        jobs: what comes, and when.
        random: of the placement.
        until: seconds at which the simulation ends, whatever is unfinished then.

    Returns:
        The replicas as they are then.
    """
    replicas = [Replica(card, scenario.slots, scenario.batch) for _ in range(scenario.replicas)]
    placer = Placer(scenario.placement, replicas, scenario.experts, random)
    numbers = count()
    events: list[tuple[float, int, str, int]] = [
        (job.arrival, next(numbers), "come", index) for index, job in enumerate(jobs)
    ]
    heapq.heapify(events)

    def begin(number: int, now: float) -> None:
        if not replicas[number].stepping and (due := replicas[number].begin(now)) is not None:
            heapq.heappush(events, (due[0], next(numbers), "stepped" if due[1] else "loaded", number))

    while events and events[0][0] <= until:
        now, _, what, index = heapq.heappop(events)
        if what == "come":
            number = placer.place(jobs[index].expert)
            replicas[number].queue.append(jobs[index])
            jobs[index].beside = sum(replica.load for replica in replicas)
        else:
            number = index
            if what == "stepped":
                replicas[number].end(now)
        begin(number, now)
    return replicas


def highest_rate(card: Card, scenario: Scenario, steps: int = 12) -> float:
    """The most requests a second at which a scenario does not break, by bisection to within 1 %."""
    low, high = 0.0, scenario.replicas * scenario.batch / (card.step_seconds(1, 1, 0) * scenario.output)
    for _ in range(steps):
        middle = (low + high) / 2
        broken = simulate(card, replace(scenario, rate=middle))["broken"]
        low, high = (low, middle) if broken else (middle, high)
        if high - low < 0.01 * high:
            break
    return low


def _jobs(scenario: Scenario, random: np.random.Generator) -> list[Job]:
    expected = int(scenario.rate * scenario.seconds * 1.2) + 20
    arrivals = np.cumsum(random.exponential(1 / scenario.rate, expected))
    arrivals = arrivals[arrivals < scenario.seconds]
    weights = np.arange(1, scenario.experts + 1, dtype=np.float64) ** -scenario.alpha
    experts = random.choice(scenario.experts, len(arrivals), p=weights / weights.sum())
    drawn = random.geometric(1 / scenario.output, len(arrivals))
    lengths = drawn if scenario.geometric else np.full(len(arrivals), scenario.output)
    return [
        Job(float(at), int(expert), scenario.prompt, int(length), int(length))
        for at, expert, length in zip(arrivals, experts, lengths, strict=True)
    ]


def _outcome(card: Card, scenario: Scenario, jobs: list[Job], replicas: list[Replica]) -> dict[str, Any]:
    warm = scenario.seconds / 4
    counted = [job for job in jobs if job.arrival >= warm]
    # One that has no first token yet has waited at least until the end.
    ttft = [(scenario.seconds if job.first is None else job.first) - job.arrival for job in counted]
    done = [job for job in counted if job.done is not None]
    tpot = [(job.done - job.first) / (job.total - 1) for job in done if job.done and job.first and job.total > 1]
    tokens = sum(job.total - job.left for job in jobs)
    loads = sum(replica.loads for replica in replicas)
    steps = max(sum(replica.steps for replica in replicas), 1)
    seconds = scenario.replicas * scenario.seconds
    per_million = seconds / tokens * 1e6 if tokens else None
    p99 = _percentile(ttft, 99)
    return {
        "requests": len(jobs),
        "unfinished": sum(job.done is None for job in jobs),
        "ttft_s": {f"p{p}": _percentile(ttft, p) for p in (50, 90, 99)},
        "tpot_s": {f"p{p}": _percentile(tpot, p) for p in (50, 90, 99)},
        "tokens_per_s": round(tokens / scenario.seconds, 2),
        "loads_per_s": round(loads / scenario.seconds, 3),
        "expert_bytes_per_s": round(loads * card.expert_bytes / scenario.seconds),
        "loads_per_request": round(loads / max(len(jobs), 1), 4),
        "busy": round(sum(replica.busy for replica in replicas) / seconds, 4),
        "busiest": round(max(replica.busy for replica in replicas) / scenario.seconds, 4),
        "experts_per_step": round(sum(replica.distinct for replica in replicas) / steps, 2),
        "slot_bytes": round(scenario.slots * card.expert_bytes),
        "host_bytes": round(scenario.experts * card.expert_bytes),
        "replica_seconds_per_million_tokens": None if per_million is None else round(per_million, 1),
        "dollars_per_million_tokens": (
            None
            if per_million is None or card.dollars_per_hour is None
            else round(per_million / 3600 * card.dollars_per_hour, 4)
        ),
        "broken": p99 is None or p99 > SLO_TTFT_SECONDS,
    }


def _percentile(values: list[float], percent: int) -> float | None:
    return round(float(np.percentile(values, percent)), 5) if values else None
