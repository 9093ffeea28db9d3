"""The time of a decision with many experts: heads of random weights, read by n-grams."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.router.measure import peak_mb
from merge.bundle import Featurizer, RouterModel
from merge.router import RouterConfig
from merge.router.features import WORDS
from serve.router import Router

BLOCK = 1000


def many_experts(experts: int, texts: Sequence[str], bits: int | None = None) -> dict[str, Any]:
    """A row of the report: milliseconds of a decision among `experts`, one after another.

    Args:
        experts: how many heads.
        texts: what is asked; the first one is not timed.
        bits: of the features; None: the router's default.
    """
    featurizer = Featurizer(bits=bits or RouterConfig().bits, words=WORDS)
    rng = np.random.default_rng(0)
    weight = np.empty((experts, featurizer.size), dtype=np.float16)
    for start in range(0, experts, BLOCK):  # float64 random numbers of all heads at once would take 26 GB
        weight[start : start + BLOCK] = rng.normal(0, 0.1, weight[start : start + BLOCK].shape)
    names = tuple(f"expert{number}" for number in range(experts))
    router = Router(RouterModel(names, weight, np.zeros(experts, np.float32), 0.5, 0.2, 0.3, featurizer))
    router.decide(texts[0])
    seconds = []
    for text in texts[1:]:
        start_at = time.perf_counter()
        router.decide(text)
        seconds.append(time.perf_counter() - start_at)
    return {
        "data": "many-experts",
        "features": "ngram",
        "experts": experts,
        "p50_ms": 1000 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)),
        "peak_mb": peak_mb(),
    }
