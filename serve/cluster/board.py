"""The last reports of the replicas."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from serve.cluster.messages import ReplicaState, Report
from serve.engine import EngineDead, EngineStats

_PERIOD = 1.0

_log = logging.getLogger("overtone")

Ask = Callable[[], Awaitable[Sequence[Report]]]


class Board:
    """Asks all replicas once a second, and remembers.

    A deployment with no replica left is given `patience` seconds to start one before it counts as dead: until then
    requests wait for it.
    """

    def __init__(self, ask: Ask, bundle: str, patience: float):
        """Begin without knowing of any replica.

        Args:
            ask: the reports of the replicas that answer.
            bundle: replicas of another one do not count.
            patience: seconds without any replica before that is an error.
        """
        self._ask, self._bundle, self._patience = ask, bundle, patience
        self._states: tuple[ReplicaState, ...] = ()
        self._reports: tuple[Report, ...] = ()
        self._seen = time.monotonic()
        self._polling: asyncio.Task[None] | None = None

    @property
    def states(self) -> tuple[ReplicaState, ...]:
        """States of the replicas that answered last."""
        return self._states

    @property
    def reports(self) -> tuple[Report, ...]:
        """Reports of all replicas that answered last, also of another bundle."""
        return self._reports

    def start(self) -> None:
        """Begin to ask."""
        self._polling = asyncio.create_task(self._poll())

    def stop(self) -> None:
        """Stop asking."""
        if self._polling is not None:
            self._polling.cancel()

    async def first(self) -> None:
        """Return once there is a replica."""
        while not self._states:
            await asyncio.sleep(0.05)

    async def refresh(self) -> None:
        """Ask now."""
        self._reports = tuple(await self._ask())
        self._states = tuple(report.state for report in self._reports if report.state.bundle == self._bundle)
        if self._states:
            self._seen = time.monotonic()

    def health(self) -> None:
        """Return if there is a replica, or was one not long ago.

        Raises:
            EngineDead: there is none.
        """
        seconds = time.monotonic() - self._seen
        if seconds > self._patience:
            raise EngineDead(f"no replica of the engine has answered for {seconds:.0f} seconds")

    def stats(self) -> EngineStats:
        """All engines' together; a name counts once, however many have that expert."""
        stats = [state.stats for state in self._states]
        return EngineStats(
            running=sum(item.running for item in stats),
            waiting=sum(item.waiting for item in stats),
            waiting_tokens=sum(item.waiting_tokens for item in stats),
            kv_blocks_used=sum(item.kv_blocks_used for item in stats),
            kv_blocks_total=sum(item.kv_blocks_total for item in stats),
            kv_cache_bytes=sum(item.kv_cache_bytes for item in stats),
            expert_slots=sum(item.expert_slots for item in stats),
            expert_device_bytes=sum(item.expert_device_bytes for item in stats),
            expert_host_bytes=sum(item.expert_host_bytes for item in stats),
            experts_resident=tuple(sorted({name for item in stats for name in item.experts_resident})),
            experts_on_host=tuple(sorted({name for item in stats for name in item.experts_on_host})),
            contents_resident=sum(item.contents_resident for item in stats),
            contents_on_host=sum(item.contents_on_host for item in stats),
            weight_bytes=sum(item.weight_bytes for item in stats),
            unquantised_weight_bytes=sum(item.unquantised_weight_bytes for item in stats),
        )

    async def _poll(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                _log.exception("asking the replicas failed")  # as if none had answered; the next time may go well
            await asyncio.sleep(_PERIOD if self._states else 0.1)
