"""The queue: fair between experts, ordered by priority and arrival within one expert."""

import heapq
from collections.abc import Iterator
from itertools import count

from serve.engine.sequence import Sequence

Group = tuple[str, ...]


class WaitingQueue:
    """Sequences that wait to be admitted, in one line for each group (mix of experts).

    The group that was served least comes first. What a group was served is counted in tokens computed, as in the
    virtual token counters of Sheng et al. (2024, arXiv:2401.00588): a group that comes back after a pause starts from
    the least of those present, so that it cannot save up a claim.
    """

    def __init__(self) -> None:
        self._lines: dict[Group, list[tuple[int, float, int, Sequence]]] = {}
        self._served: dict[Group, float] = {}
        self._active: dict[Group, int] = {}
        self._arrivals = count()
        self._length = 0
        self._tokens = 0

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> int:
        """Tokens of the waiting sequences."""
        return self._tokens

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[3] for line in self._lines.values() for entry in line)

    def enter(self, group: Group) -> None:
        """A sequence of this group is now unfinished: the group takes part in the shares."""
        if group not in self._active:
            floor = min((self._served[other] for other in self._active), default=0.0)
            self._served[group] = max(self._served.get(group, 0.0), floor)
        self._active[group] = self._active.get(group, 0) + 1

    def leave(self, group: Group) -> None:
        """A sequence of this group has ended. Debts are remembered while others are present."""
        self._active[group] -= 1
        if not self._active[group]:
            del self._active[group]
            floor = min((self._served[other] for other in self._active), default=float("inf"))
            self._served = {g: s for g, s in self._served.items() if g in self._active or s > floor}

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        entry = (*sequence.order, next(self._arrivals), sequence)
        heapq.heappush(self._lines.setdefault(sequence.group, []), entry)
        self._length += 1
        self._tokens += len(sequence.tokens)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        line = self._lines[sequence.group]
        if line[0][3] is sequence:
            heapq.heappop(line)
        else:
            line[:] = [entry for entry in line if entry[3] is not sequence]
            heapq.heapify(line)
        if not line:
            del self._lines[sequence.group]
        self._length -= 1
        self._tokens -= len(sequence.tokens)

    def charge(self, group: Group, tokens: int) -> None:
        """Count tokens that were computed for a group."""
        self._served[group] += tokens

    def served(self, group: Group) -> float:
        """What a group was served, on the scale that orders the groups."""
        return self._served[group]

    def head(self, skip: set[Group]) -> Sequence | None:
        """First sequence of the group whose turn it is, leaving out some groups."""
        heads = [line[0] for group, line in self._lines.items() if group not in skip]
        if not heads:
            return None
        return min(heads, key=lambda e: (e[0], self._served[e[3].group], e[1], e[2]))[3]
