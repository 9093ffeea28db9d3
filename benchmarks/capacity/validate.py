"""The simulation beside two real replicas on this machine.

The card is fitted to closed loops through the deployment: the time between a client's tokens against the sequences and
distinct experts in a step, which the replicas count. Then the same open loop runs on both.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.capacity.card import Card
from benchmarks.capacity.simulate import Scenario, simulate
from benchmarks.demo.bundle import zoo_bundle
from benchmarks.latency.load import run
from benchmarks.latency.summary import summarise
from benchmarks.latency.target import Target, discover
from benchmarks.latency.workload import Arrivals, Lengths, Popularity, Workload
from merge.bundle import open_bundle
from serve.cluster.deployment import Deployment
from serve.cluster.run import deploy, local_ray
from serve.config import ApiSettings, ServerSettings
from serve.engine import EngineConfig

_REPLICAS = 2
_SLOTS = 4
_BATCH = 16
_PROMPT = 16
_OUTPUT = 24
_ALPHA = 1.0
_VOCABULARY = 90
"""Token ids of synthetic prompts: all of the zoo's vocabulary is larger."""
_PHASES = ((1, "backbone"), (6, "backbone"), (16, "backbone"), (1, "identical"), (6, "uniform"), (16, "uniform"))
_SUMS = ("iteration_sequences_sum", "iteration_experts_sum", "step_seconds_count", "expert_load_seconds_sum")


def validate(rate: float, seconds: float, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run both and compare.

    Args:
        rate: requests a second of the open loop.
        seconds: how long it lasts.
        seed: of what is asked, and of the simulation.
        say: told of progress.

    Returns:
        The fitted card, both runs' figures, and `error`: simulated over real, less 1.
    """
    bundle = open_bundle(zoo_bundle(progress=False))
    settings = ServerSettings(
        bundle.path,
        log_level="warning",
        engine=EngineConfig(max_num_seqs=_BATCH, max_expert_slots=_SLOTS, kv_cache_bytes=2**26),
        api=ApiSettings(ui=False),
    )
    with local_ray("127.0.0.1", 0) as url:
        deploy(Deployment(settings=settings, replicas=_REPLICAS, cpus=0.5))
        target = asyncio.run(discover(url))
        card, hop = _fitted(target, seed, say)
        say(f"open loop of {rate:g} requests/s for {seconds:g} s")
        workload = _workload(int(rate * seconds), Popularity("zipf", _ALPHA), seed)
        real = summarise(asyncio.run(run(target, workload, Arrivals("poisson", rate=rate))))
    scenario = Scenario(
        "replicated",
        replicas=_REPLICAS,
        experts=len(target.experts),
        slots=_SLOTS,
        rate=rate,
        alpha=_ALPHA,
        batch=_BATCH,
        prompt=_PROMPT,
        output=_OUTPUT,
        geometric=False,
        seconds=seconds,
        seed=seed,
    )
    found = simulate(card, scenario)
    pairs: dict[str, tuple[float, float]] = {"tokens_per_s": (found["tokens_per_s"], real.tokens_per_s)}
    for name, offset, spread in (("ttft", hop, real.ttft_ms), ("tpot", 0.0, real.tpot_ms)):
        for percent in ("p50", "p90"):
            if spread is not None and found[f"{name}_s"][percent] is not None:
                pairs[f"{name}_{percent}_ms"] = (found[f"{name}_s"][percent] * 1e3 + offset, getattr(spread, percent))
    return {
        "card": asdict(card),
        "hop_ms": round(hop, 3),
        "scenario": asdict(scenario),
        "simulated": {name: round(pair[0], 3) for name, pair in pairs.items()},
        "real": {name: round(pair[1], 3) for name, pair in pairs.items()},
        "real_requests": real.requests,
        "real_failed": real.failed,
        "error": {name: round(pair[0] / pair[1] - 1, 3) for name, pair in pairs.items()},
    }


def _fitted(target: Target, seed: int, say: Callable[[str], None]) -> tuple[Card, float]:
    """The card that explains the closed loops, and the milliseconds that a first token takes on top of a step."""
    rows, times, firsts = list[list[float]](), list[float](), list[float]()
    before = _sums(target.url)
    for users, popularity in _PHASES:
        say(f"closed loop of {users} users, {popularity}")
        workload = _workload(8 * users if users > 1 else 24, Popularity.parse(popularity), seed)
        result = summarise(asyncio.run(run(target, workload, Arrivals("closed", users=users))))
        after = _sums(target.url)
        steps = after["step_seconds_count"] - before["step_seconds_count"]
        rows.append([1.0, *((after[name] - before[name]) / steps for name in _SUMS[:2])])
        before = after
        if result.tpot_ms is None or result.ttft_ms is None:
            raise ValueError(f"the replicas answered nothing: {result.errors}")
        times.append(result.tpot_ms.mean)
        firsts.append(result.ttft_ms.p50)
    base, sequence, expert = (max(float(value), 0.0) for value in np.linalg.lstsq(np.array(rows), np.array(times))[0])
    sums = _sums(target.url)
    loads = max(sums["expert_load_seconds_count"], 1.0)
    nbytes = sums["expert_load_bytes_total"] / loads
    card = Card(
        base_ms=base,
        sequence_ms=sequence,
        first_expert_ms=0.0,
        expert_ms=expert,
        prompt_ms=0.0,  # all prompts are of one length: their time is in the hop
        expert_bytes=nbytes,
        load_bytes_per_s=nbytes * loads / max(sums["expert_load_seconds_sum"], 1e-9),
    )
    return card, max(firsts[0] - card.step_seconds(1, 0, 0) * 1e3, 0.0)


def _workload(count: int, popularity: Popularity, seed: int) -> Workload:
    return Workload(
        count=count,
        warm_up=8,
        popularity=popularity,
        prompt_length=Lengths(_PROMPT, _PROMPT),
        output_length=Lengths(_OUTPUT, _OUTPUT),
        seed=seed,
        vocabulary=_VOCABULARY,
    )


def _sums(url: str) -> dict[str, float]:
    """The replicas' sums, all together; of expert loads those into slots."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text):
        for sample in family.samples:
            if sample.labels.get("tier", "device") == "device":
                name = sample.name.removeprefix("overtone_")
                found[name] = found.get(name, 0.0) + sample.value
    return found
