"""Which replica gets a request."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from benchmarks.capacity.replica import Replica

Placement = Literal["random", "affinity", "replicated"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
_BATCHES = 1


class Placer:
    """Chooses replicas.

    * `random`: the less loaded of two drawn ones, whatever they hold.
    * `affinity`: an expert's home, the same one always.
    * `replicated`: the less loaded of two that hold the expert; if it has a batch of requests, or none holds the
      expert, the least loaded of all, which holds it from then on. What Ray Serve's multiplexing does.
    """

    def __init__(self, placement: Placement, replicas: Sequence[Replica], experts: int, random: np.random.Generator):
        self._placement, self._replicas, self._random = placement, replicas, random
        self._homes = random.integers(0, len(replicas), experts)
        self._holders: dict[int, set[int]] = {}

    def place(self, expert: int) -> int:
        """Number of the replica for a request."""
        everyone = range(len(self._replicas))
        if self._placement == "random":
            return self._lighter(everyone)
        if self._placement == "affinity":
            return int(self._homes[expert])
        for number, replica in enumerate(self._replicas):
            for gone in replica.evicted:
                self._holders.get(gone, set()).discard(number)
            replica.evicted.clear()
        holders = self._holders.setdefault(expert, set())
        if holders:
            chosen = self._lighter(sorted(holders))
            if self._replicas[chosen].load < _BATCHES * self._replicas[chosen].batch:
                return chosen
        chosen = min(everyone, key=lambda number: (self._replicas[number].load, len(self._replicas[number].resident)))
        holders.add(chosen)
        return chosen

    def _lighter(self, numbers: Sequence[int]) -> int:
        one, other = (numbers[int(i)] for i in self._random.integers(0, len(numbers), 2))
        return min(one, other, key=lambda number: self._replicas[number].load)
