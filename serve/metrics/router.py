"""What the router decides."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from serve.metrics.labels import PROBABILITY, SHORT_SECONDS, CappedNames


class RouterMetrics:
    """Decisions by expert, and how often none was sure enough."""

    def __init__(self, registry: CollectorRegistry, experts: CappedNames):
        self._experts = experts
        self._decisions = Counter(
            "overtone_router_decisions", "Prompts sent to an expert.", ["expert"], registry=registry
        )
        self._fallbacks = Counter("overtone_router_fallbacks", "Prompts left to the backbone alone.", registry=registry)
        self._abstentions = Counter(
            "overtone_router_abstentions",
            "Prompts left to the backbone: none (no expert fits) or unsure (the best is under the threshold).",
            ["reason"],
            registry=registry,
        )
        self._near_ties = Counter(
            "overtone_router_near_ties",
            "Prompts sent to an expert while another was at least half as probable.",
            registry=registry,
        )
        self._sessions = Counter(
            "overtone_router_session_turns",
            "Turns of chats whose earlier turns decided (kept), or that went to another expert (switched).",
            ["outcome"],
            registry=registry,
        )
        for reason in ("none", "unsure"):
            self._abstentions.labels(reason)
        for outcome in ("kept", "switched"):
            self._sessions.labels(outcome)
        self._seconds = Histogram(
            "overtone_router_seconds", "Time to decide.", buckets=SHORT_SECONDS, registry=registry
        )
        self._confidence = Histogram(
            "overtone_router_confidence",
            "Probability of what was chosen.",
            buckets=PROBABILITY,
            registry=registry,
        )

    def observe(
        self,
        expert: str | None,
        seconds: float,
        confidence: float,
        *,
        abstention: str | None = None,
        near_tie: bool = False,
        session: str | None = None,
    ) -> None:
        """Count one decision; None is the backbone alone."""
        self._seconds.observe(seconds)
        if abstention is not None:
            self._abstentions.labels(abstention).inc()
        if near_tie:
            self._near_ties.inc()
        if session is not None:
            self._sessions.labels(session).inc()
        self._confidence.observe(confidence)
        if expert is None:
            self._fallbacks.inc()
        else:
            self._decisions.labels(self._experts.label(expert)).inc()
