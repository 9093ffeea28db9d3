"""A closed loop of users on an engine, and what it cost."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from serve.engine import Engine, Request, SamplingParams, SilentObserver, StepRecord
from serve.engine.scheduler import Plan, Scheduler

Popularity = Literal["uniform", "zipf"]

IDLE_SECONDS = 0.002
"""Longest pause while all requests wait for experts; an expert that arrives ends it."""


@dataclass
class Counts(SilentObserver):
    """What an engine tells while it steps.

    Attributes:
        steps: steps that computed something.
        sequences: of all steps together.
        loads: experts that came to a slot.
        arrived: set by each of them.
    """

    steps: int = 0
    sequences: int = 0
    loads: int = 0
    arrived: threading.Event = field(default_factory=threading.Event)

    def on_step(self, record: StepRecord) -> None:
        """Count a step."""
        self.steps += 1
        self.sequences += record.sequences

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: str) -> None:  # noqa: ARG002
        """Count a load."""
        if tier == "device":
            self.loads += 1
            self.arrived.set()


@dataclass(frozen=True)
class Answer:
    """One request: the rank of its expert, 0 for the most popular one, and seconds until it ended.

    Of requests that are unfinished at the end, the seconds that they have waited by then: were they left out, the ones
    that wait longest would not count.
    """

    rank: int
    seconds: float


@dataclass
class Measured:
    """A run after its warm-up.

    Attributes:
        seconds: wall time.
        cpu_seconds: of the engine's thread in steps.
        planning_seconds: CPU time of planning among it.
        answers: requests that ended meanwhile, and those that were unfinished at the end.
        finished: how many of the answers are complete.
        steps, sequences, loads: as in `Counts`.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    planning_seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    finished: int = 0
    steps: int = 0
    sequences: int = 0
    loads: int = 0


@dataclass
class Users:
    """Users of whom each asks for an expert, waits for the answer, and asks again.

    Attributes:
        experts: names, the most popular first.
        popularity: "uniform", or "zipf": the n-th is asked for 1/n as often as the first.
        prompts: token ids to choose from.
        tokens: to generate for each.
        seed: of all draws.
    """

    experts: Sequence[str]
    popularity: Popularity
    prompts: Sequence[tuple[int, ...]]
    tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        ranks = range(1, len(self.experts) + 1)
        self._weights = list(accumulate(1.0 if self.popularity == "uniform" else 1.0 / rank for rank in ranks))
        self._draws = random.Random(self.seed)
        self._params = SamplingParams(max_tokens=self.tokens, temperature=0.0, ignore_eos=True)
        self._number = 0

    def ask(self, engine: Engine) -> tuple[str, int]:
        """Add one request. Returns its id and its expert's rank."""
        (rank,) = self._draws.choices(range(len(self.experts)), cum_weights=self._weights)
        self._number += 1
        name = f"r{self._number}"
        engine.add(Request(name, self._draws.choice(self.prompts), self._params, ((self.experts[rank], 1.0),)))
        return name, rank


def measure(engine: Engine, counts: Counts, users: Users, number: int, warm_up: int, requests: int) -> Measured:
    """Let `number` users ask until `warm_up` and then `requests` requests have ended; abort what is then unfinished.

    Raises:
        RuntimeError: a request failed.
    """
    found = Measured()
    asked: dict[str, tuple[int, float]] = {}

    def ask() -> None:
        name, rank = users.ask(engine)
        asked[name] = rank, time.perf_counter()

    with planning_time() as planning:
        for _ in range(number):
            ask()
        ended = 0
        began = before = None
        while ended < warm_up + requests:
            if ended >= warm_up and began is None:
                found, began = Measured(), time.perf_counter()
                before = (counts.steps, counts.sequences, counts.loads, planning[0])
            counts.arrived.clear()
            started = time.thread_time()
            outputs = engine.step()
            found.cpu_seconds += time.thread_time() - started
            for output in outputs:
                if output.finish_reason is None:
                    continue
                if output.error is not None:
                    raise RuntimeError(f"a request failed: {output.error}")
                rank, since = asked.pop(output.request_id)
                found.answers.append(Answer(rank, time.perf_counter() - since))
                ended += 1
                ask()
            if engine.idle:
                counts.arrived.wait(IDLE_SECONDS)
        assert began is not None
        assert before is not None
        found.seconds, found.finished = time.perf_counter() - began, len(found.answers)
        found.steps, found.sequences = counts.steps - before[0], counts.sequences - before[1]
        found.loads, found.planning_seconds = counts.loads - before[2], planning[0] - before[3]
    now = time.perf_counter()
    found.answers += [Answer(rank, now - since) for rank, since in asked.values()]
    for name in asked:
        engine.abort(name)
    return found


@contextmanager
def planning_time() -> Iterator[list[float]]:
    """CPU seconds of this thread in `Scheduler.plan` so far, in a list of one number."""
    total, plan = [0.0], Scheduler.plan

    def timed(self: Scheduler) -> Plan:
        started = time.thread_time()
        try:
            return plan(self)
        finally:
            total[0] += time.thread_time() - started

    Scheduler.plan = timed  # type: ignore[method-assign]
    try:
        yield total
    finally:
        Scheduler.plan = plan  # type: ignore[method-assign]
