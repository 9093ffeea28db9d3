"""One engine in simulated time: slots, a loader, a queue and a batch."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from benchmarks.capacity.card import Card

_LOOK_AHEAD = 256
"""Waiting requests that a step looks through for one whose expert is there."""


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        arrival: seconds.
        expert: its number.
        prompt: its prompt's tokens.
        left: tokens to generate yet.
        total: tokens to generate.
        first: when its first token came, None before.
        done: when its last came.
        beside: requests under way when it came, itself included.
    """

    arrival: float
    expert: int
    prompt: int
    left: int
    total: int
    first: float | None = None
    done: float | None = None
    beside: int = 0


@dataclass(eq=False)
class Replica:
    """An engine with `slots` slots and batches of up to `batch` sequences.

    Attributes:
        loads: experts brought into slots by now.
        busy: seconds in steps by now.
        steps: steps by now.
        distinct: distinct experts of all steps together.
    """

    card: Card
    slots: int
    batch: int
    max_step_tokens: int = 2048
    queue: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    resident: OrderedDict[int, float] = field(default_factory=OrderedDict)
    pins: Counter[int] = field(default_factory=Counter)
    loader_free: float = 0.0
    stepping: bool = False
    loads: int = 0
    busy: float = 0.0
    steps: int = 0
    distinct: int = 0
    evicted: list[int] = field(default_factory=list)

    @property
    def load(self) -> int:
        """Requests, running and waiting."""
        return len(self.queue) + len(self.running)

    def begin(self, now: float) -> tuple[float, bool] | None:
        """Admit what can run and begin a step.

        Returns:
            When the step ends and True, or when an expert that is waited for arrives and False; None: nothing to do.
        """
        prompt_tokens = self._admit(now)
        if not self.running:
            coming = [self.resident[job.expert] for job in self._ahead() if self.resident.get(job.expert, 0.0) > now]
            return (min(coming), False) if coming else None
        experts = len({job.expert for job in self.running})
        seconds = self.card.step_seconds(len(self.running), experts, prompt_tokens)
        self.busy += seconds
        self.steps += 1
        self.distinct += experts
        self.stepping = True
        return now + seconds, True

    def end(self, now: float) -> list[Job]:
        """A step ends: each sequence has a token more. Returns the jobs that are done."""
        self.stepping = False
        done = []
        for job in self.running:
            job.first = now if job.first is None else job.first
            job.left -= 1
            if job.left == 0:
                job.done = now
                self.pins[job.expert] -= 1
                done.append(job)
        self.running = [job for job in self.running if job.left]
        return done

    def _admit(self, now: float) -> int:
        """Move jobs whose expert is there from the queue into the batch; start loading the others'. Prompt tokens."""
        tokens, taken = 0, set[int]()
        for job in self._ahead():
            if len(self.running) == self.batch or tokens + job.prompt > self.max_step_tokens:
                break
            ready = self.resident.get(job.expert)
            if ready is None:
                self._fetch(job.expert, now)
            elif ready <= now:
                self.resident.move_to_end(job.expert)
                self.pins[job.expert] += 1
                self.running.append(job)
                taken.add(id(job))
                tokens += job.prompt
        if taken:
            self.queue = deque(job for job in self.queue if id(job) not in taken)
        return tokens

    def _fetch(self, expert: int, now: float) -> None:
        """Start loading an expert if a slot is available for it."""
        if len(self.resident) >= self.slots:
            free = next((old for old, ready in self.resident.items() if ready <= now and not self.pins[old]), None)
            if free is None:
                return
            del self.resident[free]
            self.evicted.append(free)
        self.loader_free = max(now, self.loader_free) + self.card.load_seconds()
        self.resident[expert] = self.loader_free
        self.loads += 1

    def _ahead(self) -> list[Job]:
        return [job for job, _ in zip(self.queue, range(_LOOK_AHEAD), strict=False)]
