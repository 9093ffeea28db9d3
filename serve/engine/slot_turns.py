"""Which lines have slots for their experts, and when they must give them up."""

from serve.engine.lines import Line, LineHeap
from serve.engine.sequence import Sequence
from serve.engine.waiting import WaitingQueue
from serve.experts import ExpertStore
from serve.experts.version import ExpertLoadError


class SlotTurns:
    """Gives the expert store's slots to lines, in order of arrival. All sequences of a line share one lease.

    A line is granted its lease while its waiting sequences may use it. It keeps the lease until it is not granted and
    none of its sequences runs. Only the first of the lines that wait for slots asks the store for them, so that single
    experts cannot pass a mix for ever.

    While slots are short, granted lines go on admitting. Once the first line that waits for slots is overdue, it
    insists. Sequences that came after it are then admitted only

    - from the lines with the most unfinished sequences, in at most half of the slots: closing those would cost a load
      soon afterwards;
    - within the credit of a line: what waited in it when it was granted, and at most `WaitingQueue.passes`.

    All other lines lose their grant, and their slots become free as their sequences finish.
    """

    def __init__(self, waiting: WaitingQueue, experts: ExpertStore) -> None:
        self._waiting, self._experts = waiting, experts
        self._queue = LineHeap(lambda line: line.age)
        self._loading: dict[Line, None] = {}
        self._holders: dict[Line, None] = {}
        self._insisting: Line | None = None
        self._kept: set[Line] = set()

    def arrive(self, line: Line, sequence: Sequence) -> None:
        """A sequence has begun to wait in a line."""
        if line.granted:
            return
        if not line.group or (line.lease is not None and self.may_admit(line)):
            line.granted = True
            self._waiting.open(line)
        elif line not in self._queue or line.head is sequence:
            self._queue.add(line)

    def vacate(self, line: Line) -> None:
        """The last waiting sequence of a line has left it."""
        line.granted, line.credit = False, 0
        self._queue.discard(line)
        self._loading.pop(line, None)
        if line is self._insisting:
            self._insisting = None
        self._release_unused(line)

    def seat(self, line: Line) -> None:
        """A sequence of a granted line begins to run."""
        line.running += 1
        line.credit = max(line.credit - 1, 0)

    def unseat(self, line: Line) -> None:
        """A sequence of a line runs no more."""
        line.running -= 1
        self._release_unused(line)

    def poll(self) -> list[Sequence]:
        """Open the lines whose experts have arrived.

        Returns:
            The waiting sequences whose experts could not be loaded, with the reason in `expert_error`.
        """
        failed: list[Sequence] = []
        for line in list(self._loading):
            assert line.lease is not None
            if (error := line.lease.error) is not None:
                failed += self._fail(line, error)
            elif line.lease.ready:
                del self._loading[line]
                self._waiting.open(line)
        return failed

    def grant(self) -> None:
        """Give slots to the lines that wait for them, as far as there are any."""
        while True:
            while (line := self._queue.first()) is not None and self._obtain(line):
                self._queue.discard(line)
            if not self._let_insist(line):
                return

    def may_admit(self, line: Line) -> bool:
        """Whether a line may admit its first sequence before the line that insists."""
        insisting = self._insisting
        return insisting is None or not line.group or line in self._kept or line.credit > 0 or line.age < insisting.age

    def close(self, line: Line) -> None:
        """Take a line's grant. It waits for its next turn; its slots become free once none of its sequences runs."""
        line.granted = False
        self._waiting.close(line)
        self._queue.add(line)
        self._release_unused(line)

    def _obtain(self, line: Line) -> bool:
        if line.lease is None:
            line.versions = line.head.versions
            line.lease = self._experts.acquire(line.versions)
            if line.lease is None:
                return False
            self._holders[line] = None
        line.granted, line.credit = True, min(len(line), self._waiting.passes)
        if line.lease.ready:
            self._waiting.open(line)
        else:
            self._loading[line] = None
        return True

    def _let_insist(self, line: Line | None) -> bool:
        """Note which line insists. Returns whether it has just begun to, so that slots may be free now."""
        if line is None or not self._waiting.is_overdue(line.head):
            self._insisting = None
            return False
        if line is self._insisting:
            return False
        # The choice remains until this line has its slots: with new choices, they might never be free together.
        self._insisting, self._kept = line, self._choose_kept(line)
        for holder in list(self._holders):
            if holder.granted and holder not in self._loading and not self.may_admit(holder):
                self.close(holder)
        return True

    def _choose_kept(self, insisting: Line) -> set[Line]:
        wanted = set(insisting.group)
        held = {digest for holder in self._holders for digest in holder.group}
        room = min(len(held) // 2, len(held) - len(wanted))
        kept: set[Line] = set()
        digests: set[str] = set()
        for holder in sorted(self._holders, key=lambda holder: -holder.unfinished):
            more = digests.union(holder.group) - wanted
            if len(more) <= room:
                kept.add(holder)
                digests = more
        return kept

    def _fail(self, line: Line, error: ExpertLoadError) -> list[Sequence]:
        del self._loading[line]
        failed = [sequence for sequence in line if sequence.versions == line.versions]
        for sequence in failed:
            sequence.expert_error = error
        line.granted = False
        self._queue.add(line)
        self._release_unused(line)
        return failed

    def _release_unused(self, line: Line) -> None:
        if line.lease is not None and not line.granted and not line.running:
            self._experts.release(line.lease)
            line.lease = None
            del self._holders[line]
