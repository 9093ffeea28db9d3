"""Which tokens of which sequences the next step computes."""

import time
from dataclasses import dataclass, field

from serve.config.engine import EngineConfig
from serve.engine.kv_blocks import BlockPool
from serve.engine.sequence import Sequence
from serve.engine.slot_turns import SlotTurns
from serve.engine.waiting import WaitingQueue
from serve.experts import ExpertStore

PROMPT_LOGPROBS_CHUNK = 128
"""Most prompt tokens in a step whose log-probabilities are wanted: each takes a row as long as the vocabulary."""


@dataclass(frozen=True)
class Chunk:
    """Part of a sequence in one step.

    Attributes:
        sequence: the sequence.
        count: its next tokens to compute.
        draws: whether its last token is among them, so that the next one is drawn.
        prefill: whether these are tokens of the prompt, or recomputed ones.
        ahead: if the token is drawn by a step that is still being computed, the number of tokens that this step
            computes of the sequence; otherwise 0. The host does not know the token then.
    """

    sequence: Sequence
    count: int
    draws: bool
    prefill: bool
    ahead: int = 0

    @property
    def position(self) -> int:
        """Position of its first token."""
        return self.sequence.computed + self.ahead


@dataclass
class Plan:
    """One step: its chunks, and what happened while it was planned.

    Attributes:
        scorable: prompt tokens whose log-probabilities the step can still compute.
    """

    chunks: list[Chunk] = field(default_factory=list)
    failed: list[Sequence] = field(default_factory=list)
    preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    scorable: int = PROMPT_LOGPROBS_CHUNK

    def largest_chunk(self, sequence: Sequence) -> int:
        """A sequence's tokens that the step may compute, by how many log-probabilities it has room for."""
        unscored = sequence.unscored
        return sequence.remaining if unscored is None else min(sequence.remaining, unscored + self.scorable)


class Scheduler:
    """Continuous batching with chunked prefill, preemption by recomputation and fair shares.

    The work of planning a step grows with what it computes and with the slots, not with what waits.

    Attributes:
        waiting: sequences without blocks.
        running: sequences with blocks.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool, experts: ExpertStore) -> None:
        self._config, self._pool = config, pool
        self.waiting = WaitingQueue(passes=config.max_num_seqs)
        self._slots = SlotTurns(self.waiting, experts)
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self._slots.arrive(self.waiting.add(sequence), sequence)

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

    def reserve(self, sequence: Sequence) -> bool:
        """Whether a running sequence has a block for the token after its last one, or could be given one."""
        missing = self._blocks_of(len(sequence.tokens) + 1) - len(sequence.blocks)
        if missing > self._pool.free:
            return False
        sequence.blocks += self._pool.allocate(missing)
        return True

    def remove(self, sequence: Sequence) -> None:
        """Take back all that an ended sequence holds."""
        if sequence in self.running:
            self._stop(sequence)
        else:
            self._leave_queue(sequence)
        self.waiting.leave(sequence.group)

    def _continue_running(self, plan: Plan, budget: int) -> int:
        """One token for everyone who decodes, the rest of the budget for prompts, in order of priority and arrival."""
        self.running.sort(key=lambda sequence: sequence.order)
        decoding = sum(sequence.remaining == 1 for sequence in self.running)
        for position, sequence in enumerate(list(self.running)):
            if position >= len(self.running):
                break  # preempted, as is everyone behind it
            decoding -= sequence.remaining == 1
            count = min(plan.largest_chunk(sequence), budget - decoding)
            if count > 0 and self._make_room(sequence, plan):
                self._take(plan, sequence, count)
                budget -= count
        return budget

    def _make_room(self, sequence: Sequence, plan: Plan) -> bool:
        """Blocks for all of a sequence's tokens; the last in order lose theirs if there are too few."""
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
        self._stop(sequence)
        self._slots.arrive(self.waiting.push(sequence), sequence)

    def _admit(self, plan: Plan, budget: int) -> None:
        """Let waiting sequences in while tokens, seats and blocks last."""
        for sequence in self._slots.poll():
            self.remove(sequence)
            plan.failed.append(sequence)
        self._slots.grant()
        while budget > 0 and len(self.running) < self._config.max_num_seqs:
            line = self.waiting.first()
            if line is None:
                return
            if not self._slots.may_admit(line):
                self._slots.close(line)
                self._slots.grant()
                continue
            sequence = line.head
            if not self._seat(sequence, plan):
                return
            count = min(plan.largest_chunk(sequence), budget)
            if count > 0:
                self._take(plan, sequence, count)
                budget -= count

    def _seat(self, sequence: Sequence, plan: Plan) -> bool:
        """Move a sequence from the queue to the running ones, with blocks for all its tokens, if there are enough."""
        size = self._config.block_size
        cached: list[int] = []
        if self._config.enable_prefix_caching:
            cached = self._pool.match(sequence.key(block, size) for block in range(sequence.cacheable // size))
        missing = self._blocks_of(len(sequence.tokens)) - len(cached)
        if missing + self._pool.unheld(cached) > self._pool.free:
            return False
        self._pool.share(cached)
        sequence.blocks = cached + self._pool.allocate(missing)
        sequence.computed = len(cached) * size
        sequence.published = len(cached)
        plan.prefix_query_tokens += len(sequence.tokens)
        plan.prefix_hit_tokens += sequence.computed
        line = self.waiting.line(sequence.group)
        self._slots.seat(line)
        sequence.lease = line.lease
        self._leave_queue(sequence)
        self.running.append(sequence)
        if sequence.scheduled is None:
            sequence.scheduled = time.monotonic()
            sequence.cached = sequence.computed
        return True

    def _take(self, plan: Plan, sequence: Sequence, count: int) -> None:
        self.waiting.charge(sequence.group, count)
        decoding = sequence.remaining == 1 and sequence.generated > 0
        if (unscored := sequence.unscored) is not None:
            plan.scorable -= max(count - unscored, 0)
        plan.chunks.append(Chunk(sequence, count, count == sequence.remaining, not decoding))

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._config.block_size)

    def _leave_queue(self, sequence: Sequence) -> None:
        line = self.waiting.remove(sequence)
        if not len(line):
            self._slots.vacate(line)

    def _stop(self, sequence: Sequence) -> None:
        """End a sequence's run, and take back what it holds."""
        self.running.remove(sequence)
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = 0
        sequence.lease = None
        self._slots.unseat(self.waiting.line(sequence.group))
