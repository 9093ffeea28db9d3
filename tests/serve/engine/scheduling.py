"""The real scheduler, block pool and slot table without a model: loads take a few steps, every draw is a token."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import cast

from serve.engine import EngineConfig, Request, SamplingParams
from serve.engine.kv_blocks import BlockPool
from serve.engine.scheduler import Plan, Scheduler
from serve.engine.sequence import Sequence
from serve.experts import ExpertLoadError, ExpertStore, ExpertVersion, Lease
from serve.experts.slots import Slot, SlotTable


class SlotStore:
    """As much of an expert store as the scheduler uses.

    Attributes:
        loads: digests, in the order in which they were asked for.
        broken: digests that cannot be loaded.
    """

    def __init__(self, slots: int, load_steps: Callable[[], int] = lambda: 0) -> None:
        self.table = SlotTable.of(slots)
        self.loads: list[str] = []
        self.broken: set[str] = set()
        self._load_steps = load_steps
        self._loading: list[tuple[Slot, int]] = []

    @property
    def pins(self) -> int:
        return sum(slot.pins for slot in self.table.slots)

    def acquire(self, versions: Many[ExpertVersion]) -> Lease | None:
        found = self.table.lease(versions)
        if found is None:
            return None
        lease, awaiting, _ = found
        for slot in awaiting:
            assert slot.version is not None
            self.loads.append(slot.version.digest)
            self._loading.append((slot, self._load_steps()))
        self.work(0)
        return lease

    def release(self, lease: Lease) -> None:
        self.table.release(lease)

    def work(self, steps: int = 1) -> None:
        """Let loads go on for some steps."""
        still = []
        for slot, left in self._loading:
            if left > steps:
                still.append((slot, left - steps))
            elif slot.version is not None and slot.version.digest in self.broken:
                slot.error = ExpertLoadError("broken", slot.version.name)
                if slot.pins == 0:
                    slot.empty()
            else:
                slot.ready = True
        self._loading = still

    def evict(self, digest: str) -> None:
        """Unload an expert that no sequence needs."""
        slot = self.table.find(digest)
        if slot is not None and slot.evictable:
            slot.empty()


class Bench:
    """A scheduler that is stepped by hand.

    Attributes:
        step: number of the next step.
        began, ended: request → step of its first and its last computation.
    """

    def __init__(
        self,
        slots: int,
        seqs: int = 8,
        batched_tokens: int = 64,
        blocks: int = 1000,
        load_steps: Callable[[], int] = lambda: 0,
    ) -> None:
        config = EngineConfig(max_num_seqs=seqs, max_num_batched_tokens=batched_tokens, block_size=4)
        self.pool, self.store = BlockPool(blocks), SlotStore(slots, load_steps)
        self.scheduler = Scheduler(config, self.pool, cast("ExpertStore", self.store))
        self.step = 0
        self.added: dict[str, int] = {}
        self.began: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.failed: set[str] = set()
        self.unfinished: dict[str, Sequence] = {}

    def add(self, name: str, experts: Iterable[str] = (), prompt: int = 8, tokens: int = 8, priority: int = 0) -> None:
        versions = tuple((ExpertVersion(expert, Path(expert), expert, 1), 1.0) for expert in experts)
        start = sum(map(ord, name))  # so that only some prompts share a prefix
        request = Request(
            name,
            tuple(range(start, start + prompt)),
            SamplingParams(max_tokens=tokens),
            tuple((version.name, gate) for version, gate in versions),
            priority,
            float(len(self.added)),
        )
        self.unfinished[name] = Sequence(request, versions, seed=0)
        self.added[name] = self.step
        self.scheduler.add(self.unfinished[name])

    def abort(self, name: str) -> None:
        self.scheduler.remove(self.unfinished.pop(name))

    def run(self) -> Plan:
        """One step."""
        plan = self.scheduler.plan()
        for sequence in plan.failed:
            self.failed.add(sequence.request.request_id)
            del self.unfinished[sequence.request.request_id]
        for chunk in plan.chunks:
            sequence, name = chunk.sequence, chunk.sequence.request.request_id
            assert sequence.lease is not None if sequence.group else sequence.lease is None
            assert sequence.lease is None or sequence.lease.ready
            self.began.setdefault(name, self.step)
            self.scheduler.computed(chunk)
            if chunk.draws:
                sequence.tokens.append(1)
                if sequence.generated >= sequence.request.params.max_tokens:
                    self.scheduler.remove(sequence)
                    self.ended[name] = self.step
                    del self.unfinished[name]
        self.store.work()
        self.step += 1
        return plan

    def run_until(self, *names: str, limit: int = 10_000) -> None:
        """Step until all of these have ended."""
        for _ in range(limit):
            if all(name in self.ended for name in names):
                return
            self.run()
        raise AssertionError(f"{[name for name in names if name not in self.ended]} unfinished after {limit} steps")
