"""Requests of several mixes of experts, for the tests of the engine's promises."""

import asyncio
import time
from collections.abc import Callable

import torch

from serve.engine import Request, SilentObserver, StepRecord
from tests.serve.conftest import greedy

MIXES: list[tuple[tuple[str, float], ...]] = [
    (),
    (("a", 1.0),),
    (("b", 1.0),),
    (("c", 1.0),),
    (("d", 1.0),),
    (("a", 0.25), ("b", 0.75)),
    (("c", 0.5), ("a", -0.5), ("d", 1.0)),
]


class Steps(SilentObserver):
    """Notes steps, refusals and loads."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.rejects: list[str] = []
        self.loads: list[tuple[str, str]] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)

    def on_reject(self, reason: str) -> None:
        self.rejects.append(reason)

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: str) -> None:
        assert seconds >= 0
        assert nbytes > 0
        self.loads.append((name, tier))


def prompt(number: int, length: int) -> tuple[int, ...]:
    """Random tokens, the same for the same number."""
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(2, 97, (length,), generator=generator).tolist())


def requests(tokens: int = 8) -> list[Request]:
    """Two requests of each mix, with prompts from 1 token to longer than a step."""
    return [
        Request(f"r{i}", prompt(i, 1 + 7 * i % 60), greedy(tokens), MIXES[i % len(MIXES)])
        for i in range(2 * len(MIXES))
    ]


async def until(holds: Callable[[], bool], patience: float = 20.0) -> None:
    """Return once `holds` is true."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
