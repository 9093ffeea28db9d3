"""The engine's observer that tells two."""

from typing import Literal

from serve.engine import EngineObserver, RequestRecord, StepRecord
from serve.experts import LoadFailure
from serve.tracing.tracing import Tracing


class TracedObserver:
    """Passes everything on to an observer, and finished requests to the tracing as well."""

    def __init__(self, observer: EngineObserver, tracing: Tracing):
        self._observer, self._tracing = observer, tracing

    def on_step(self, record: StepRecord) -> None:
        """Pass it on."""
        self._observer.on_step(record)

    def on_finish(self, record: RequestRecord) -> None:
        """Tell both."""
        self._observer.on_finish(record)
        self._tracing.on_finish(record)

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: Literal["host", "device"]) -> None:
        """Pass it on."""
        self._observer.on_expert_load(name, seconds, nbytes, tier)

    def on_expert_evict(self, name: str, tier: Literal["host", "device"]) -> None:
        """Pass it on."""
        self._observer.on_expert_evict(name, tier)

    def on_expert_failure(self, name: str, reason: LoadFailure) -> None:
        """Pass it on."""
        self._observer.on_expert_failure(name, reason)

    def on_reject(self, reason: str) -> None:
        """Pass it on."""
        self._observer.on_reject(reason)
