"""Which tokens of which sequences the next step computes."""

import time
from dataclasses import dataclass, field

from serve.engine.config import EngineConfig
from serve.engine.kv_blocks import BlockPool
from serve.engine.sequence import Sequence
from serve.engine.waiting import Group, WaitingQueue
from serve.experts import ExpertStore

PROMPT_LOGPROBS_CHUNK = 128
"""Most prompt tokens in a chunk whose log-probabilities are wanted: each takes a row as long as the vocabulary."""

SLOT_PATIENCE = 4
"""A group that waits for a slot is passed by others until they were served this many full steps more than it."""


@dataclass(frozen=True)
class Chunk:
    """Part of a sequence in one step.

    Attributes:
        sequence: the sequence.
        count: its next tokens to compute.
        draws: whether its last token is among them, so that the next one is drawn.
        prefill: whether these are tokens of the prompt, or recomputed ones.
    """

    sequence: Sequence
    count: int
    draws: bool
    prefill: bool


@dataclass
class Plan:
    """One step: its chunks, and what happened while it was planned."""

    chunks: list[Chunk] = field(default_factory=list)
    failed: list[Sequence] = field(default_factory=list)
    preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0


class Scheduler:
    """Continuous batching with chunked prefill, preemption by recomputation and fair shares between experts.

    Attributes:
        waiting: sequences without blocks.
        running: sequences with blocks.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool, experts: ExpertStore) -> None:
        self._config, self._pool, self._experts = config, pool, experts
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self.waiting.enter(sequence.group)
        self.waiting.push(sequence)

    def plan(self) -> Plan:
        """Choose the next step's tokens and give their sequences the blocks and slots they need."""
        plan = Plan()
        budget = self._continue_running(plan, self._config.max_num_batched_tokens)
        if not plan.preemptions:
            self._admit(plan, budget)
        return plan

    def computed(self, chunk: Chunk) -> None:
        """A chunk's keys and values are in place: full blocks may be shared from now on."""
        sequence, size = chunk.sequence, self._config.block_size
        sequence.computed += chunk.count
        for block in range(sequence.published, sequence.computed // size):
            self._pool.publish(sequence.blocks[block], sequence.key(block, size))
            sequence.published = block + 1

    def remove(self, sequence: Sequence) -> None:
        """Take back all that an ended sequence holds."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release_blocks(sequence)
        self._release_lease(sequence)
        self.waiting.leave(sequence.group)

    def _continue_running(self, plan: Plan, budget: int) -> int:
        """One token for everyone who decodes, the rest of the budget for prompts, in order of priority and arrival."""
        self.running.sort(key=lambda sequence: sequence.order)
        decoding = sum(sequence.remaining == 1 for sequence in self.running)
        for sequence in list(self.running):
            if sequence not in self.running:
                break  # preempted, as is everyone behind it
            decoding -= sequence.remaining == 1
            count = min(self._largest_chunk(sequence), budget - decoding)
            if count > 0 and self._make_room(sequence, plan):
                self._take(plan, sequence, count)
                budget -= count
        return budget

    def _make_room(self, sequence: Sequence, plan: Plan) -> bool:
        """Blocks for all of a sequence's tokens; the last in order lose theirs where there are too few."""
        while (missing := self._blocks_of(len(sequence.tokens)) - len(sequence.blocks)) > self._pool.free:
            victim = self.running[-1]
            self._preempt(victim)
            plan.preemptions += 1
            if victim is sequence:
                return False
        sequence.blocks += self._pool.allocate(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks; it will be computed again, from what is then left of it in the prefix cache."""
        self.running.remove(sequence)
        self._release_blocks(sequence)
        self.waiting.push(sequence)

    def _admit(self, plan: Plan, budget: int) -> None:
        """Let waiting sequences in while tokens, seats and blocks last, passing those whose experts are not there."""
        passed: set[Group] = set()
        limit = float("inf")
        while budget > 0 and len(self.running) < self._config.max_num_seqs:
            sequence = self.waiting.head(passed)
            if sequence is None:
                return
            group = sequence.group
            if group and self.waiting.served(group) > limit:
                self._release_lease(sequence)  # the group gives up its slots, one finished sequence after another
                passed.add(group)
                continue
            if group and sequence.lease is None:
                sequence.lease = self._experts.acquire([version for version, _ in sequence.experts])
                if sequence.lease is None:
                    patience = SLOT_PATIENCE * self._config.max_num_batched_tokens
                    limit = min(limit, self.waiting.served(group) + patience)
                    passed.add(group)
                    continue
            if sequence.lease is not None and (error := sequence.lease.error) is not None:
                sequence.expert_error = error
                self.remove(sequence)
                plan.failed.append(sequence)
                continue
            if sequence.lease is not None and not sequence.lease.ready:
                passed.add(group)
                continue
            if not self._seat(sequence, plan):
                return
            count = min(self._largest_chunk(sequence), budget)
            self._take(plan, sequence, count)
            budget -= count

    def _seat(self, sequence: Sequence, plan: Plan) -> bool:
        """Move a sequence from the queue to the running ones, with blocks for all its tokens, if there are enough."""
        size = self._config.block_size
        cached: list[int] = []
        if self._config.enable_prefix_caching and sequence.request.params.prompt_logprobs is None:
            # The last token is always computed: its logits are what the next token is drawn from.
            full = (len(sequence.tokens) - 1) // size
            cached = self._pool.match(sequence.key(block, size) for block in range(full))
        missing = self._blocks_of(len(sequence.tokens)) - len(cached)
        if missing + self._pool.unheld(cached) > self._pool.free:
            return False
        self._pool.share(cached)
        sequence.blocks = cached + self._pool.allocate(missing)
        sequence.computed = len(cached) * size
        sequence.published = len(cached)
        plan.prefix_query_tokens += len(sequence.tokens)
        plan.prefix_hit_tokens += sequence.computed
        self.waiting.remove(sequence)
        self.running.append(sequence)
        if sequence.scheduled is None:
            sequence.scheduled = time.monotonic()
            sequence.cached = sequence.computed
        return True

    def _take(self, plan: Plan, sequence: Sequence, count: int) -> None:
        self.waiting.charge(sequence.group, count)
        decoding = sequence.remaining == 1 and sequence.generated > 0
        plan.chunks.append(Chunk(sequence, count, count == sequence.remaining, not decoding))

    def _largest_chunk(self, sequence: Sequence) -> int:
        prompt_logprobs = sequence.request.params.prompt_logprobs is not None
        return min(sequence.remaining, PROMPT_LOGPROBS_CHUNK) if prompt_logprobs else sequence.remaining

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._config.block_size)

    def _release_blocks(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = 0

    def _release_lease(self, sequence: Sequence) -> None:
        if sequence.lease is not None:
            self._experts.release(sequence.lease)
            sequence.lease = None
