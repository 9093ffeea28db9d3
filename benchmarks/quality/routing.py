"""The router of a domain: how often it is right, how well it knows, how fast, and what it costs the answers."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.quality.domain import Requests, Routable
from benchmarks.quality.store import Store
from benchmarks.quality.table import Cell
from merge.router import train_router
from merge.router.quality import area_under_curve, calibration_error
from serve.router import Router


@dataclass(frozen=True)
class Routing:
    """What the router did with unseen requests.

    Attributes:
        chosen: for each task, the expert chosen for each test request ("" for none).
        accuracy: share of the requests that went to their own expert.
        ece: expected calibration error over ten bins of the best expert's probability, on the tasks' requests.
        ece_with_foreign: the same with the foreign requests among them, for which no expert is right; None without any.
        auroc: how well that probability tells the tasks' requests from foreign ones; None without foreign ones.
        foreign_routed: share of foreign requests that went to an expert at all.
        p99_ms: 99th percentile of a decision's time, in milliseconds, on this machine as it was.
    """

    chosen: dict[str, list[str]]
    accuracy: float
    ece: float
    ece_with_foreign: float | None
    auroc: float | None
    foreign_routed: float | None
    p99_ms: float


def measure_routing(domain: Routable, store: Store, seed: int) -> Routing | None:
    """Train a router and put unseen requests to it; None if the domain has no text."""
    key = {"domain": domain.name, "settings": domain.settings, "routing": 3, "seed": seed}

    def compute() -> dict[str, Any] | None:
        requests = domain.requests(seed)
        return None if requests is None else asdict(routed(requests))

    found = store.result(key, compute)
    return None if found is None else Routing(**found)


def routed_accuracy(routing: Routing, expert: Cell, backbone: Cell) -> dict[str, float]:
    """Accuracy by task with the router's choices.

    A request that went to its own expert counts as that expert answered it, one that went to none as the backbone did,
    and one that went to another expert as wrong.
    """
    found = {}
    for task, choices in routing.chosen.items():
        marks = zip(choices, expert.right[task], backbone.right[task], strict=True)
        right = [own == "1" if choice == task else choice == "" and none == "1" for choice, own, none in marks]
        found[task] = sum(right) / len(right)
    return found


def routed(requests: Requests) -> Routing:
    """Train a router and put unseen requests to it."""
    router = Router(train_router(requests.train))
    chosen: dict[str, list[str]] = {}
    best, right, seconds = [], [], []
    for task, prompts in requests.test.items():
        chosen[task] = []
        for prompt in prompts:
            start = time.perf_counter()
            decision = router.decide(prompt)
            seconds.append(time.perf_counter() - start)
            chosen[task].append(decision.expert or "")
            top = max(decision.scores, key=lambda name: decision.scores[name])
            best.append(decision.scores[top])
            right.append(top == task)
    foreign = [router.decide(prompt) for prompt in requests.foreign]
    strangers = [max(decision.scores.values()) for decision in foreign]
    routed = [choice == task for task, choices in chosen.items() for choice in choices]
    return Routing(
        chosen=chosen,
        accuracy=sum(routed) / len(routed),
        ece=calibration_error(best, right),
        ece_with_foreign=calibration_error(best + strangers, right + [False] * len(strangers)) if strangers else None,
        auroc=area_under_curve(best, strangers) if strangers else None,
        foreign_routed=sum(item.expert is not None for item in foreign) / len(foreign) if foreign else None,
        p99_ms=1000 * float(np.quantile(seconds, 0.99)),
    )
