"""The simulation beside two real replicas on this machine.

A card is fitted to closed loops on both. Then the same requests at the same times go to the replicas and through the
simulation, and what their clients see is compared.
"""

import asyncio
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.capacity.fit import Fit, fit
from benchmarks.capacity.replica import Job
from benchmarks.capacity.simulate import Scenario, highest_rate, replay
from benchmarks.capacity.trace import trace
from benchmarks.decode.model import Shape, write_model
from serve.bench.client import Answer
from serve.bench.load import run
from serve.bench.summary import tpot, ttft
from serve.bench.target import Target, discover
from serve.bench.workload import Arrivals, Lengths, Popularity, Workload
from serve.cluster.deployment import Deployment
from serve.cluster.run import deploy, local_ray
from serve.config import ApiSettings, ServerSettings
from serve.engine import EngineConfig

_SHAPE = Shape()
"""372 M parameters: on one core a step takes some 50 ms. A token's way through Ray, HTTP and the client takes 3 ms of
the same two cores, which the simulation knows only as a share of a step; with a third of the layers it was most of it.
"""
_EXPERTS = 12
_DENSITY = 0.01
_REPLICAS = 2
_SLOTS = 8
_BATCH = 16
_PROMPT = 32
_OUTPUT = 32
_ALPHA = 1.0
_SHARES = (0.5, 0.8)
"""Shares of the largest load that the replicas bear in the simulation."""
_PERCENT = (50, 90, 99)


def validate(rate: float | None, seconds: float, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run both and compare.

    Args:
        rate: requests a second of the open loop; None: one loop at half of what the simulation sustains, one at 80 %.
        seconds: how long each lasts.
        seed: of what is asked, and when.
        say: receives lines about the progress.

    Returns:
        The fitted card, and of each loop both sides' figures and `error`: simulated over real, less 1.

    Raises:
        ValueError: an answer failed.
    """
    with tempfile.TemporaryDirectory(prefix="overtone-capacity-") as folder:
        say("writing the model and its experts")
        bundle = write_model(Path(folder) / "bundle", _SHAPE, _EXPERTS, _DENSITY)
        settings = ServerSettings(
            bundle.path,
            log_level="warning",
            engine=EngineConfig(
                max_model_len=_PROMPT + _OUTPUT + 64, max_num_seqs=_BATCH, max_expert_slots=_SLOTS, kv_cache_bytes=2**26
            ),
            api=ApiSettings(ui=False),
        )
        with local_ray("127.0.0.1", 0) as url:
            deploy(Deployment(settings=settings, replicas=_REPLICAS, cpus=0.5))
            target = asyncio.run(discover(url))
            found = fit(target, _REPLICAS, partial(_workload, seed), say)
            most = highest_rate(found.card, _scenario(1.0, 60.0, seed))
            rates = [share * most for share in _SHARES] if rate is None else [rate]
            loops = [_loop(target, found, _scenario(each, seconds, seed), say) for each in rates]
    return {**asdict(found), "highest_rate": round(most, 3), "loops": loops}


def _loop(target: Target, found: Fit, scenario: Scenario, say: Callable[[str], None]) -> dict[str, Any]:
    """One open loop, really and simulated; the first quarter fills slots and is left out of both."""
    say(f"open loop of {scenario.rate:.2f} requests/s for {scenario.seconds:g} s")
    workload = _workload(
        scenario.seed, int(scenario.rate * scenario.seconds), Popularity("zipf", _ALPHA), Lengths(_OUTPUT, _OUTPUT)
    )
    arrivals = Arrivals("poisson", rate=scenario.rate)
    answers = asyncio.run(run(target, workload, arrivals))
    if failed := {answer.error for answer in answers if answer.error is not None}:
        raise ValueError(f"answers of the open loop failed: {failed}")
    jobs = trace(workload, arrivals, list(target.experts))
    replay(found.card, scenario, jobs, np.random.default_rng(scenario.seed), math.inf)
    start = min(answer.sent for answer in answers)
    real = _figures([_seen(answer) for answer in answers if answer.sent - start >= scenario.seconds / 4])
    simulated = _figures([_foreseen(job, found) for job in jobs if job.arrival >= scenario.seconds / 4])
    return {
        "scenario": asdict(scenario),
        "requests": len(answers),
        "simulated": simulated,
        "real": real,
        "error": {name: round(simulated[name] / real[name] - 1, 3) for name in real},
    }


def _seen(answer: Answer) -> tuple[float, float, float]:
    """Milliseconds to the first token, for each further one, and to the end, as a client measures them."""
    return ttft(answer), tpot(answer), (answer.ended - answer.sent) * 1e3


def _foreseen(job: Job, found: Fit) -> tuple[float, float, float]:
    """The same of a simulated request."""
    assert job.first is not None
    assert job.done is not None
    first, end = job.first - job.arrival, job.done - job.arrival
    hop = found.hop_ms + found.hop_request_ms * job.beside
    return 1e3 * first + hop, 1e3 * (end - first) / max(job.total - 1, 1), 1e3 * end + hop


def _figures(rows: Sequence[tuple[float, float, float]]) -> Mapping[str, float]:
    columns = zip(*rows, strict=True)
    return {
        f"{name}_p{percent}_ms": round(float(np.percentile(column, percent)), 2)
        for name, column in zip(("ttft", "tpot", "e2e"), columns, strict=True)
        for percent in _PERCENT
    }


def _scenario(rate: float, seconds: float, seed: int) -> Scenario:
    return Scenario(
        "replicated",
        replicas=_REPLICAS,
        experts=_EXPERTS,
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


def _workload(seed: int, count: int, popularity: Popularity, lengths: Lengths) -> Workload:
    return Workload(
        count=count,
        warm_up=8,
        popularity=popularity,
        prompt_length=Lengths(_PROMPT, _PROMPT),
        output_length=lengths,
        seed=seed,
        vocabulary=_SHAPE.vocabulary,
    )
