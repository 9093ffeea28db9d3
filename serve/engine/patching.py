"""Running one expert from patched weights while nothing else is asked for."""

from collections.abc import Sequence as Rows

from serve.engine.scheduler import Chunk
from serve.model import ResidualBanks


class Patching:
    """Puts an expert into the weights once enough steps in a row had it alone, and takes it out when that ends.

    Patching and restoring cost a pass over the residual, so an expert must have been alone for a while before it is
    worth it; and since a patched weight is rounded to the weights' dtype, while a fused residual is added in float32,
    the two differ in the last bits. Hence it is off unless asked for.
    """

    def __init__(self, banks: ResidualBanks, after_steps: int | None) -> None:
        self._banks, self._after_steps = banks, after_steps
        self._alone: str | None = None
        self._steps = 0
        self._patched: str | None = None

    def settle(self, chunks: Rows[Chunk]) -> bool:
        """Bring the weights into the state for a step; whether its experts are in them."""
        if self._after_steps is None:
            return False
        digest = _only_expert(chunks)
        self._steps = self._steps + 1 if digest is not None and digest == self._alone else 1
        self._alone = digest
        if self._patched is not None and self._patched != digest:
            self._banks.unpatch()
            self._patched = None
        lease = chunks[0].sequence.lease
        if self._patched is None and digest is not None and lease is not None and self._steps > self._after_steps:
            self._banks.patch(lease.slots[0])
            self._patched = digest
        return self._patched is not None


def _only_expert(chunks: Rows[Chunk]) -> str | None:
    """Content of the one expert that every sequence has alone and with gate 1, or None."""
    experts = chunks[0].sequence.experts
    if len(experts) != 1 or experts[0][1] != 1.0:
        return None
    digest = experts[0][0].digest
    same = all(c.sequence.group == (digest,) and c.sequence.experts[0][1] == 1.0 for c in chunks)
    return digest if same else None
