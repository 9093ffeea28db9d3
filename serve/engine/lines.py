"""Lines of waiting sequences, one for each mix of experts, and a heap that yields the first line."""

import heapq
from collections.abc import Callable, Iterator
from itertools import count

from serve.engine.sequence import Group, Sequence
from serve.experts import ExpertVersion, Lease

Key = tuple[float, ...]


class Line:
    """The unfinished sequences of one group (mix of experts), and the slots that they share.

    Attributes:
        group: the experts' content digests.
        service: virtual time: the tokens that were computed for the group, each divided by the number of its unfinished
            sequences at that time.
        unfinished: its sequences, waiting and running.
        running: those that run.
        lease: the slots of its experts, or None while it has none.
        versions: the experts' versions that the lease was taken for.
        granted: whether its waiting sequences may use the lease.
        credit: sequences that may still follow each other on this grant while another line insists on slots.
    """

    def __init__(self, group: Group, service: float) -> None:
        self.group, self.service = group, service
        self.unfinished = self.running = self.credit = 0
        self.lease: Lease | None = None
        self.versions: tuple[ExpertVersion, ...] = ()
        self.granted = False
        self._entries: list[tuple[int, float, int, Sequence]] = []
        self._numbers = count()

    def __len__(self) -> int:
        """How many sequences wait."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        """The waiting sequences, in no particular order."""
        return (entry[3] for entry in self._entries)

    @property
    def head(self) -> Sequence:
        """The first waiting sequence, by priority and arrival."""
        return self._entries[0][3]

    @property
    def turn(self) -> Key:
        """Orders lines by who is served next: priority, then the smallest virtual time."""
        return self.head.request.priority, self.service, self.head.request.arrival

    @property
    def age(self) -> Key:
        """Orders lines by how long their first sequence has waited, within a priority."""
        return self.head.age

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        heapq.heappush(self._entries, (*sequence.order, next(self._numbers), sequence))

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence from any place in its line."""
        if self.head is sequence:
            heapq.heappop(self._entries)
        else:
            self._entries[:] = [entry for entry in self._entries if entry[3] is not sequence]
            heapq.heapify(self._entries)


class LineHeap:
    """Lines by a key that may rise at any time; if it falls, `add` must be called again.

    `first` costs O(log n) for each line at the top whose key has risen since it was last checked.
    """

    def __init__(self, key: Callable[[Line], Key]) -> None:
        self._key = key
        self._entries: list[tuple[Key, int, Line]] = []
        self._tickets: dict[Line, int] = {}
        self._numbers = count()

    def __contains__(self, line: Line) -> bool:
        return line in self._tickets

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, line: Line) -> None:
        """Take a line in, or note that its key has fallen."""
        self._tickets[line] = ticket = next(self._numbers)
        heapq.heappush(self._entries, (self._key(line), ticket, line))
        if len(self._entries) > 2 * len(self._tickets) + 16:
            self._entries = [entry for entry in self._entries if self._tickets.get(entry[2]) == entry[1]]
            heapq.heapify(self._entries)

    def discard(self, line: Line) -> None:
        """Leave a line out."""
        self._tickets.pop(line, None)

    def first(self) -> Line | None:
        """The line with the smallest key."""
        while self._entries:
            key, ticket, line = self._entries[0]
            if self._tickets.get(line) != ticket:
                heapq.heappop(self._entries)
            elif (risen := self._key(line)) > key:
                heapq.heapreplace(self._entries, (risen, ticket, line))
            else:
                return line
        return None
