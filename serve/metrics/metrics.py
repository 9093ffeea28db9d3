"""All metrics of one server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder

from serve.engine import EngineStats
from serve.metrics.engine import EngineMetrics
from serve.metrics.http import HttpMetrics
from serve.metrics.labels import CappedNames
from serve.metrics.router import RouterMetrics
from serve.metrics.state import StateMetrics

EXPERT_LABELS = 100


class Metrics:
    """One registry and what is on it.

    Args:
        expert_labels: how many experts get a separate label; the others are counted as "other".
        version: the server's version, shown as `overtone_build_info`.
    """

    def __init__(self, expert_labels: int = EXPERT_LABELS, version: str = ""):
        self.registry = CollectorRegistry()
        names = CappedNames(expert_labels)
        self.engine = EngineMetrics(self.registry, names)
        self.router = RouterMetrics(self.registry, names)
        self.http = HttpMetrics(self.registry)
        self._state = StateMetrics(self.registry, names)
        self._stats: Callable[[], EngineStats] | None = None
        ProcessCollector(registry=self.registry)
        info = Gauge("overtone_build_info", "1; the label is the version.", ["version"], registry=self.registry)
        info.labels(version).set(1)

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Ask `stats` at every scrape."""
        self._stats = stats

    async def scrape(self, accept: str = "", phase: str = "ready") -> tuple[bytes, str]:
        """What a scrape is answered: `render`, if there is one process to ask."""
        return self.render(accept, phase)

    def render(self, accept: str = "", phase: str = "ready") -> tuple[bytes, str]:
        """The scrape's body and content type: OpenMetrics if `accept` requests it, else Prometheus' text.

        Args:
            accept: the scrape's Accept header.
            phase: the server's phase, one of `serve.metrics.state.PHASES`.
        """
        self._refresh(phase)
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def families(self, phase: str = "ready") -> list[Metric]:
        """All metrics at this moment, to be joined with those of other processes."""
        self._refresh(phase)
        return list(self.registry.collect())

    def _refresh(self, phase: str) -> None:
        self._state.phase(phase)
        if self._stats is not None:
            self._state.engine(self._stats(), self.http.experts_under_way)
