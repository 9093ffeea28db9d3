"""Running one expert from patched weights while nothing else is asked for."""

import logging
from collections.abc import Sequence as Rows

from serve.engine.patch_costs import PatchCosts
from serve.engine.scheduler import Chunk
from serve.model import ResidualBanks

_log = logging.getLogger("overtone")

_HALFWAY = ""
"""No expert's digest: weights that are neither the backbone's nor an expert's."""


class Patching:
    """Puts an expert into the weights once that pays, and takes it out when another comes.

    What fused steps of one expert alone lose against patched ones is added up; when it has reached what it takes to
    patch and to unpatch, the expert is patched. This is how long to rent skis: whatever comes next, never more than
    twice is lost of what could have been known to be least, and traffic that keeps changing never patches at all. A
    long prompt may lose that much in a single step and is patched before it.

    A patched weight is rounded to the weights' dtype, while a fused residual is added in float32, so that the two
    differ in the last bits. Hence it is off unless asked for. Experts with a low-rank part are never patched.
    """

    def __init__(self, banks: ResidualBanks, costs: PatchCosts | None) -> None:
        """Without costs nothing is ever patched."""
        self._banks, self._costs = banks, costs
        self._alone: str | None = None
        self._lost = 0.0
        self._patched: str | None = None
        self._told = False

    @property
    def active(self) -> bool:
        """Whether steps may be patched."""
        return self._costs is not None

    def settle(self, chunks: Rows[Chunk]) -> bool:
        """Bring the weights into the state for a step; whether its experts are in them."""
        if self._costs is None:
            return False
        digest = _only_expert(chunks)
        if self._patched is not None and self._patched != digest:
            self._restore()
        if digest != self._alone:
            self._alone, self._lost = digest, 0.0
        lease = chunks[0].sequence.lease
        if digest is not None and lease is not None and self._patched is None:
            if self._banks.patches(lease.slots[0]):
                self._lost += self._costs.saved_seconds(sum(chunk.count for chunk in chunks))
                if self._lost >= self._costs.switch_seconds:
                    self._patch(digest, lease.slots[0])
            elif not self._told:
                self._told = True
                _log.info(
                    "patching: expert %s has a low-rank part, and such experts stay fused",
                    chunks[0].sequence.experts[0][0].name,
                )
        return self._patched is not None

    def _patch(self, digest: str, slot: int) -> None:
        self._lost, self._patched = 0.0, _HALFWAY
        try:
            self._banks.patch(slot)
        except Exception as error:
            self._restore()
            self._costs = None
            _log.warning("an expert could not be patched into the weights, steps stay fused from now on: %s", error)
        else:
            self._patched = digest

    def _restore(self) -> None:
        """Take out what is patched. If that fails the step does, and the next one begins with it."""
        self._patched = _HALFWAY
        self._banks.unpatch()
        self._patched = None


def _only_expert(chunks: Rows[Chunk]) -> str | None:
    """Content of the one expert that every sequence has alone and with gate 1, or None."""
    experts = chunks[0].sequence.experts
    if len(experts) != 1 or experts[0][1] != 1.0:
        return None
    digest = experts[0][0].digest
    same = all(c.sequence.group == (digest,) and c.sequence.experts[0][1] == 1.0 for c in chunks)
    return digest if same else None
