"""Experts kept in host memory, ready to be copied to a slot."""

from collections import OrderedDict

from serve.model import PackedExpert


class HostTier:
    """Packed experts by content digest. The least recently used are removed if a limit is exceeded.

    Each call costs the same whatever number of experts is kept. Not thread-safe: the store's lock guards it.

    Attributes:
        nbytes: of all experts kept.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[str, PackedExpert, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, digest: str) -> bool:
        return digest in self._kept

    def get(self, digest: str) -> PackedExpert | None:
        """An expert that is kept, which thereby counts as used."""
        if digest not in self._kept:
            return None
        self._kept.move_to_end(digest)
        return self._kept[digest][1]

    def fits(self, nbytes: int) -> bool:
        """Whether an expert of this size may be kept at all."""
        return self._max_bytes is None or nbytes <= self._max_bytes

    def put(self, digest: str, name: str, packed: PackedExpert, nbytes: int) -> list[str]:
        """Keep an expert that fits. Returns the names of those that had to leave."""
        self.remove(digest)
        self._kept[digest] = (name, packed, nbytes)
        self.nbytes += nbytes
        evicted = []
        while not self.fits(self.nbytes):
            _, (oldest, _, size) = self._kept.popitem(last=False)
            self.nbytes -= size
            evicted.append(oldest)
        return evicted

    def remove(self, digest: str) -> bool:
        """Forget an expert. Returns whether it was kept."""
        if (found := self._kept.pop(digest, None)) is None:
            return False
        self.nbytes -= found[2]
        return True
