"""Which expert is in which slot, which requests need it there, and which expert is evicted for another one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from serve.experts.version import ExpertLoadError, ExpertVersion


@dataclass
class Slot:
    """One place in the device-side banks.

    Attributes:
        number: its index in the banks.
        version: the expert in it or on its way, None for an empty slot.
        ready: its residual is in place.
        error: why it could not be loaded.
        pins: leases that need it.
        used: when it was last pinned or released, in ticks of the table.
    """

    number: int
    version: ExpertVersion | None = None
    ready: bool = False
    error: ExpertLoadError | None = None
    pins: int = 0
    used: int = 0

    @property
    def evictable(self) -> bool:
        """Whether another expert may take it: no lease needs it and nothing is being written to it."""
        return self.pins == 0 and (self.version is None or self.ready or self.error is not None)

    def empty(self) -> None:
        """Forget the expert."""
        self.version, self.ready, self.error = None, False, None


@dataclass(frozen=True)
class Lease:
    """Slots kept for one sequence until they are released.

    Attributes:
        places: one slot for each expert asked for, in that order.
    """

    places: tuple[Slot, ...]

    @property
    def ready(self) -> bool:
        """Whether every expert is in place."""
        return all(slot.ready for slot in self.places)

    @property
    def error(self) -> ExpertLoadError | None:
        """Why one of the experts could not be loaded."""
        return next((slot.error for slot in self.places if slot.error is not None), None)

    @property
    def slots(self) -> tuple[int, ...]:
        """Slot numbers."""
        return tuple(slot.number for slot in self.places)


@dataclass
class SlotTable:
    """All slots. Not thread-safe: the store's lock guards it."""

    slots: list[Slot]
    _ticks: Iterator[int] = field(default_factory=count)

    @classmethod
    def of(cls, number: int) -> "SlotTable":
        """A table of empty slots."""
        return cls([Slot(n) for n in range(number)])

    def find(self, digest: str) -> Slot | None:
        """The slot that holds a content or waits for it."""
        return next((slot for slot in self.slots if slot.version is not None and slot.version.digest == digest), None)

    def ready(self) -> dict[str, int]:
        """The contents that are in place, with their slots' numbers."""
        return {slot.version.digest: slot.number for slot in self.slots if slot.version is not None and slot.ready}

    def lease(self, versions: Sequence[ExpertVersion]) -> tuple[Lease, list[Slot], list[ExpertVersion]] | None:
        """Pin a slot for each version, all of them or none.

        Returns:
            The lease, the slots that now await loading, and the versions that had to go; None if too few slots can
            be had.
        """
        wanted = {version.digest for version in versions}
        held = {digest: slot for digest in wanted if (slot := self.find(digest)) is not None}
        spare = [s for s in self.slots if s.evictable and (s.version is None or s.version.digest not in wanted)]
        if len(wanted) - len(held) > len(spare):
            return None
        spare.sort(key=lambda slot: (slot.version is not None, slot.used))
        awaiting, evicted, places = [], [], []
        for version in versions:
            slot = held.get(version.digest)
            if slot is None:
                slot = spare.pop(0)
                if slot.version is not None:
                    evicted.append(slot.version)
                slot.empty()
                slot.version = version
                held[version.digest] = slot
                awaiting.append(slot)
            slot.pins += 1
            slot.used = next(self._ticks)
            places.append(slot)
        return Lease(tuple(places)), awaiting, evicted

    def release(self, lease: Lease) -> None:
        """Unpin. A slot whose loading failed becomes empty."""
        for slot in lease.places:
            slot.pins -= 1
            slot.used = next(self._ticks)
            if slot.pins == 0 and slot.error is not None:
                slot.empty()
