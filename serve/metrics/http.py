"""What clients see: HTTP requests, and the time to their tokens."""

import collections
from collections.abc import Iterable, Set

from prometheus_client import CollectorRegistry, Counter, Histogram

from serve.metrics.labels import REQUEST_SECONDS, TIME_TO_FIRST_TOKEN, TOKEN_SECONDS

_FINISH_REASONS = ("stop", "length", "abort", "error")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics:
    """Labels are few by construction: route templates, known methods, statuses."""

    def __init__(self, registry: CollectorRegistry):
        self._requests = Counter(
            "overtone_http_requests", "HTTP requests.", ["handler", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "overtone_http_request_duration_seconds",
            "From a request's head to the end of its response.",
            ["handler"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("overtone_generation_tokens", "Tokens generated.", registry=registry)
        self._first_token = Histogram(
            "overtone_time_to_first_token_seconds",
            "From arrival to a choice's first token.",
            buckets=TIME_TO_FIRST_TOKEN,
            registry=registry,
        )
        self._inter_token = Histogram(
            "overtone_inter_token_latency_seconds",
            "Between the tokens of a choice.",
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        self._finished = Counter(
            "overtone_request_success", "Choices by the reason they ended.", ["finished_reason"], registry=registry
        )
        for reason in _FINISH_REASONS:
            self._finished.labels(reason)
        self._under_way: collections.Counter[str] = collections.Counter()

    @property
    def experts_under_way(self) -> Set[str]:
        """Experts of the choices that were admitted and have not ended."""
        return self._under_way.keys()

    def request(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count a response; `handler` is the route's template."""
        self._requests.labels(handler, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(handler).observe(seconds)

    def tokens(self, count: int, seconds: float, first: bool) -> None:
        """Count tokens of a choice that came together.

        Args:
            count: how many, at least one.
            seconds: since the request arrived, for the `first` ones; else since the ones before.
            first: whether these are the choice's first.
        """
        self._tokens.inc(count)
        if first:
            self._first_token.observe(seconds)
        else:
            self._inter_token.observe(seconds / count)

    def admitted(self, experts: Iterable[str]) -> None:
        """Note a choice that the engine has taken, with its experts."""
        self._under_way.update(experts)

    def finished(self, reason: str, experts: Iterable[str] = ()) -> None:
        """Count an admitted choice that ended.

        Args:
            reason: "stop", "length", "abort" (the client left, or the server stopped) or "error".
            experts: what it was admitted with.
        """
        self._finished.labels(reason).inc()
        self._under_way.subtract(experts)
        self._under_way = +self._under_way
