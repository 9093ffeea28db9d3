"""What the router decides."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from serve.metrics.buckets import PROBABILITY, SHORT_SECONDS
from serve.metrics.labels import CappedNames


class RouterMetrics:
    """Decisions by expert, and how often none was sure enough."""

    def __init__(self, registry: CollectorRegistry, experts: CappedNames):
        self._experts = experts
        self._decisions = Counter(
            "overtone_router_decisions", "Prompts sent to an expert.", ["expert"], registry=registry
        )
        self._fallbacks = Counter("overtone_router_fallbacks", "Prompts left to the backbone alone.", registry=registry)
        self._seconds = Histogram(
            "overtone_router_seconds", "Time to decide.", buckets=SHORT_SECONDS, registry=registry
        )
        self._confidence = Histogram(
            "overtone_router_confidence",
            "Probability of what was chosen.",
            buckets=PROBABILITY,
            registry=registry,
        )

    def observe(self, expert: str | None, seconds: float, confidence: float) -> None:
        """Count one decision; None is the backbone alone."""
        self._seconds.observe(seconds)
        self._confidence.observe(confidence)
        if expert is None:
            self._fallbacks.inc()
        else:
            self._decisions.labels(self._experts.label(expert)).inc()
