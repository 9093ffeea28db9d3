"""The card of real replicas, fitted to what their engines count while closed loops run on all of them."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.capacity.card import Card
from serve.bench.load import run
from serve.bench.summary import summarise
from serve.bench.target import Target
from serve.bench.workload import Arrivals, Lengths, Popularity, Workload

_LONG, _SHORT = Lengths(16, 48), Lengths(2, 8)
_PHASES = (
    *((users, "backbone", _LONG) for users in (2, 4, 8, 16, 32)),
    *((users, "backbone", _SHORT) for users in (2, 16)),
    *((users, "identical", _LONG) for users in (2, 16)),
    *((users, "uniform", _LONG) for users in (2, 4, 8, 16, 32)),
    *((users, "uniform", _SHORT) for users in (2, 16)),
)
"""(users, popularity, tokens of a reply) of the closed loops: batches of all sizes, with none, one and several experts,
and few and many prompts a step. Replies differ in length, so that they do not all begin and end together."""
_ROUNDS = 5
_FEWEST = 16
_LEAST_HOP_MS = 0.1
"""Relative errors need something above 0; nothing that passes two processes takes less."""

Draw = Callable[[int, Popularity, Lengths], Workload]
"""Makes a workload from a number of requests, their popularity and the lengths of their replies."""


@dataclass(frozen=True)
class Phase:
    """The mean step of one closed loop.

    Attributes:
        users: of both replicas together.
        ms: from one step's begin to the next one's.
        contents: 1, sequences, whether it has an expert, distinct experts, prompt tokens.
        hop_ms: what a first token takes outside the engine.
    """

    users: int
    ms: float
    contents: tuple[float, float, float, float, float]
    hop_ms: float


@dataclass(frozen=True)
class Fit:
    """What closed loops say of replicas.

    Attributes:
        card: one replica's speeds while the others are as busy.
        hop_ms: what a first token takes outside the engine: HTTP, tokenizer, router, and the way to a replica and back.
        hop_request_ms: what each request that is under way adds to that, since all of them take the same way.
        phases: what these were fitted to.
        errors: fitted over measured time of their steps, less 1.
    """

    card: Card
    hop_ms: float
    hop_request_ms: float
    phases: tuple[Phase, ...]
    errors: tuple[float, ...]


def fit(target: Target, replicas: int, draw: Draw, say: Callable[[str], None]) -> Fit:
    """Run the closed loops and explain their mean steps.

    A step's time is linear in what is in it, so that the mean of a phase's steps is that function of the means.

    Args:
        target: the replicas' server, at which nothing else runs.
        replicas: how many there are.
        draw: what to ask.
        say: receives lines about the progress.

    Raises:
        ValueError: an answer failed.
    """
    phases = []
    for users, popularity, lengths in _PHASES:
        say(f"closed loop of {users} users, {popularity}, replies of {lengths.low} to {lengths.high} tokens")
        workload = draw(max(_FEWEST, _ROUNDS * users), Popularity.parse(popularity), lengths)
        phases.append(asyncio.run(_phase(target, replicas, users, workload)))
    return explain(phases, sums(target.url))


def explain(phases: Sequence[Phase], total: Mapping[str, float]) -> Fit:
    """The card whose steps are those of all phases, by least squares of relative errors, no coefficient below 0.

    Args:
        phases: what was measured.
        total: counts of all loads of experts into slots.
    """
    rows, times = np.array([phase.contents for phase in phases]), np.array([phase.ms for phase in phases])
    found = _not_negative(rows / times[:, None])
    loads = max(total["expert_load_seconds_count"], 1.0)
    nbytes = total["expert_load_bytes_total"] / loads
    base, sequence, first_expert, expert, prompt = (round(float(value), 4) for value in found)
    card = Card(
        base_ms=base,
        sequence_ms=sequence,
        first_expert_ms=first_expert,
        expert_ms=expert,
        prompt_ms=prompt,
        expert_bytes=nbytes,
        load_bytes_per_s=round(nbytes * loads / max(total["expert_load_seconds_sum"], 1e-9)),
    )
    hops = np.array([max(phase.hop_ms, _LEAST_HOP_MS) for phase in phases])
    under_way = np.array([(1.0, phase.users) for phase in phases])
    hop, hop_request = (round(float(value), 3) for value in _not_negative(under_way / hops[:, None]))
    errors = tuple(round(float(error), 3) for error in rows @ found / times - 1)
    return Fit(card, hop, hop_request, tuple(phases), errors)


def _not_negative(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients with which all rows are nearest to 1; the most negative is set to 0 until none is below."""
    kept = list(range(rows.shape[1]))
    while (found := np.linalg.lstsq(rows[:, kept], np.ones(len(rows)))[0]).min() < 0:
        kept.pop(int(found.argmin()))
    coefficients = np.zeros(rows.shape[1])
    coefficients[kept] = found
    return coefficients


async def _phase(target: Target, replicas: int, users: int, workload: Workload) -> Phase:
    """One closed loop, counted from its second round until its last one begins."""
    answered, counts = 0, dict[int, asyncio.Task[tuple[float, dict[str, float]]]]()
    first, last = users, workload.count - users

    def tell() -> None:
        nonlocal answered
        answered += 1
        if answered in (first, last):
            counts[answered] = asyncio.create_task(asyncio.to_thread(_counted, target.url))

    result = summarise(await run(target, workload, Arrivals("closed", users=users), tell))
    if result.failed or result.ttft_ms is None:
        raise ValueError(f"answers of a closed loop failed: {result.errors}")
    (began, before), (ended, after) = await counts[first], await counts[last]
    phase = {name: value - before.get(name, 0.0) for name, value in after.items()}
    steps = phase["step_seconds_count"]
    if users > replicas:  # so that no engine is ever without work
        ms = 1e3 * (ended - began) * replicas / steps
    else:  # one sequence at each: what passes between its tokens is a step
        decoding = phase["request_generation_tokens_sum"] - phase["request_generation_tokens_count"]
        ms = 1e3 * phase["request_decode_time_seconds_sum"] / decoding
    prompts = phase["computed_tokens_total/prefill"] / steps if users > replicas else 0.0
    inside = phase["request_queue_time_seconds_sum"] + phase["request_prefill_time_seconds_sum"]
    contents = (
        1.0,
        phase["iteration_sequences_sum"] / steps,
        (phase["steps_total/fused"] + phase["steps_total/patched"]) / steps,
        phase["iteration_experts_sum"] / steps,
        prompts,
    )
    hop = result.ttft_ms.mean - 1e3 * inside / phase["request_prefill_time_seconds_count"]
    return Phase(users, round(ms, 3), contents, round(hop, 3))


def sums(url: str) -> dict[str, float]:
    """All replicas' counts together; of expert loads those into slots, of labels `mode` and `phase` each its own."""
    return _counted(url)[1]


def _counted(url: str) -> tuple[float, dict[str, float]]:
    """When, in seconds, and the counts."""
    body, now = httpx.get(f"{url}/metrics", timeout=30).text, time.perf_counter()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            if sample.labels.get("tier", "device") == "device" and "le" not in sample.labels:
                name = sample.name.removeprefix("overtone_")
                kind = sample.labels.get("mode") or sample.labels.get("phase")
                name = f"{name}/{kind}" if kind else name
                found[name] = found.get(name, 0.0) + sample.value
    return now, found
