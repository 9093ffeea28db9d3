"""The queue: a line for each mix of experts, and whose turn it is."""

import heapq
from collections import Counter
from collections.abc import Iterator

from serve.engine.lines import Line, LineHeap
from serve.engine.sequence import Group, Sequence


class WaitingQueue:
    """Sequences that wait to be admitted, in one line for each group (mix of experts).

    Lines are served by virtual time, as in weighted fair queueing (Parekh and Gallager 1993) with costs in tokens
    computed, as in Sheng et al. (2024, arXiv:2401.00588). A line's weight is the number of its unfinished sequences, so
    that an expert that many ask for is not slower than one that few ask for. The queue's own virtual time advances by
    the tokens computed for anyone, divided by all unfinished sequences. A line begins there, so that it neither saves
    up a claim while it is away nor goes ahead of what was there before.

    Fairness may change the order of arrival only so far: a sequence is overdue once `passes` more sequences have left
    the queue than waited in front of it when it came. No later one of its priority is then served before it. The wait
    is therefore bounded whatever comes afterwards.

    Only open lines take part in `first`: the others wait for slots.
    """

    def __init__(self, passes: int) -> None:
        """Begin empty.

        Args:
            passes: how many sequences may leave the queue ahead of an earlier one.
        """
        self.passes = passes
        self._lines: dict[Group, Line] = {}
        self._turns = LineHeap(lambda line: line.turn)
        self._ages = LineHeap(lambda line: line.age)
        self._debts: dict[Group, float] = {}
        self._debtors: list[tuple[float, Group]] = []
        self._priorities: Counter[int] = Counter()
        self._virtual_time = 0.0
        self._unfinished = self._length = self._tokens = self._left = 0

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> int:
        """Tokens of the waiting sequences."""
        return self._tokens

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for line in self._lines.values() for sequence in line)

    def line(self, group: Group) -> Line:
        """The line of a group that has unfinished sequences."""
        return self._lines[group]

    def add(self, sequence: Sequence) -> Line:
        """Let a new sequence wait. A line that was empty must be opened, or wait for slots."""
        group = sequence.group
        line = self._lines.get(group)
        if line is None:
            start = max(self._virtual_time, self._debts.pop(group, 0.0))
            line = self._lines[group] = Line(group, start)
        line.unfinished += 1
        self._unfinished += 1
        priority = sequence.request.priority
        sequence.due = self._left + self._priorities[priority] + self.passes
        self.push(sequence)
        return line

    def push(self, sequence: Sequence) -> Line:
        """Let a sequence wait again; it is overdue when it would have been."""
        line = self._lines[sequence.group]
        line.push(sequence)
        self._priorities[sequence.request.priority] += 1
        self._length += 1
        self._tokens += len(sequence.tokens)
        if line in self._turns and line.head is sequence:
            self.open(line)
        return line

    def remove(self, sequence: Sequence) -> Line:
        """Remove a sequence from any place in its line."""
        line = self._lines[sequence.group]
        line.remove(sequence)
        if not len(line):
            self.close(line)
        priority = sequence.request.priority
        self._priorities[priority] -= 1
        if not self._priorities[priority]:
            del self._priorities[priority]
        self._left += 1
        self._length -= 1
        self._tokens -= len(sequence.tokens)
        return line

    def leave(self, group: Group) -> None:
        """A sequence of this group has ended. What a line was served early is remembered while others are present."""
        line = self._lines[group]
        line.unfinished -= 1
        self._unfinished -= 1
        if line.unfinished:
            return
        del self._lines[group]
        if line.service > self._virtual_time:
            self._debts[group] = line.service
            heapq.heappush(self._debtors, (line.service, group))
        while self._debtors and (not self._lines or self._debtors[0][0] <= self._virtual_time):
            service, debtor = heapq.heappop(self._debtors)
            if self._debts.get(debtor) == service:
                del self._debts[debtor]

    def charge(self, group: Group, tokens: int) -> None:
        """Count tokens that were computed for a group."""
        line = self._lines[group]
        line.service += tokens / line.unfinished
        self._virtual_time += tokens / self._unfinished

    def open(self, line: Line) -> None:
        """Let a line with waiting sequences take part in `first`."""
        self._turns.add(line)
        self._ages.add(line)

    def close(self, line: Line) -> None:
        """Leave a line out of `first`."""
        self._turns.discard(line)
        self._ages.discard(line)

    def is_overdue(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence was passed as often as it may be."""
        return self._left >= sequence.due

    def first(self) -> Line | None:
        """The open line whose first sequence is next: an overdue one, or the one with the smallest virtual time."""
        line, oldest = self._turns.first(), self._ages.first()
        if line is None or oldest is None:
            return None
        # Both heaps order by priority first, so that the two are of one priority.
        return oldest if self.is_overdue(oldest.head) else line
