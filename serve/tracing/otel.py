"""Traces through OpenTelemetry, with the attributes of its conventions for HTTP and generative AI."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import context as current
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.decision import Decision
from serve.engine import RequestRecord
from serve.version import overtone_version

_TRACED = "/v1/"
_BACKBONE = "backbone"
_FLUSH_MILLISECONDS = 2000


def exporting_provider() -> TracerProvider:
    """A provider that sends spans in batches to the collector that the environment names, until the process ends."""
    own = Resource({SERVICE_NAME: "overtone", SERVICE_VERSION: overtone_version()})
    provider = TracerProvider(resource=Resource.create().merge(own).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class OtelTracing:
    """Makes OpenTelemetry's spans.

    Args:
        provider: the provider of the spans.
    """

    def __init__(self, provider: TracerProvider):
        self._provider = provider
        self._tracer = provider.get_tracer("overtone", overtone_version())
        self._parents: dict[str, Context] = {}

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """An application with a span around each request to /v1, below that of its `traceparent` header."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
                await app(scope, receive, send)
                return
            method = scope["method"]
            with self._tracer.start_as_current_span(
                method,
                TraceContextTextMapPropagator().extract(dict(Headers(scope=scope))),
                SpanKind.SERVER,
                {"http.request.method": method, "url.path": scope["path"]},
            ) as span:

                async def noted(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        headers = Headers(raw=message["headers"])
                        span.set_attribute("http.response.status_code", message["status"])
                        for header, attribute in (
                            ("x-request-id", "overtone.request_id"),
                            ("x-overtone-expert", "gen_ai.response.model"),
                        ):
                            if header in headers:
                                span.set_attribute(attribute, headers[header])
                        if message["status"] >= 500:
                            span.set_status(Status(StatusCode.ERROR))
                    await send(message)

                try:
                    await app(scope, receive, noted)
                finally:
                    if (route := getattr(scope.get("route"), "path", None)) is not None:
                        span.update_name(f"{method} {route}")
                        span.set_attribute("http.route", route)

        return traced

    def route(self, decide: Callable[[], Decision]) -> Decision:
        """Decide in a span named "route", which says what was decided."""
        with self._tracer.start_as_current_span("route") as span:
            decision = decide()
            span.set_attribute("overtone.expert", decision.expert or _BACKBONE)
            span.set_attribute("overtone.confidence", decision.confidence)
            return decision

    def admission(self, request_id: str, caller: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
        """Remember this block's span, or the caller's, for the engine's spans of a request that it does not refuse."""
        return self._admission(
            request_id, current.get_current() if caller is None else TraceContextTextMapPropagator().extract(caller)
        )

    def carry(self) -> Mapping[str, str]:
        """W3C's `traceparent` and `tracestate` of the span that is open here."""
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        return headers

    @contextmanager
    def _admission(self, request_id: str, parent: Context) -> Iterator[None]:
        self._parents[request_id] = parent  # before the engine has it: it may finish at once
        try:
            yield
        except BaseException:
            del self._parents[request_id]
            raise

    def on_finish(self, record: RequestRecord) -> None:
        """Spans "queue", "prefill" and "decode", as far as the request came."""
        parent = self._parents.pop(record.request_id, None)
        if parent is None:
            return
        common: dict[str, AttributeValue] = {
            "overtone.expert": "+".join(record.experts) or _BACKBONE,
            "overtone.choice": record.request_id,
        }
        scheduled, first = record.scheduled or record.finished, record.first_token or record.finished
        phases: list[tuple[str, float, float, dict[str, AttributeValue]]] = [("queue", record.arrival, scheduled, {})]
        if record.scheduled is not None:
            counts = {"gen_ai.usage.input_tokens": record.prompt_tokens, "overtone.cached_tokens": record.cached_tokens}
            phases.append(("prefill", scheduled, first, {**counts}))
        if record.first_token is not None:
            tokens = {"gen_ai.usage.output_tokens": record.generated_tokens}
            phases.append(("decode", first, record.finished, {**tokens}))
        phases[-1][3]["gen_ai.response.finish_reasons"] = (record.finish_reason,)
        epoch = time.time() - time.monotonic()
        for name, began, ended, own in phases:
            span = self._tracer.start_span(name, parent, attributes=common | own, start_time=int((epoch + began) * 1e9))
            span.end(int((epoch + ended) * 1e9))

    def flush(self) -> None:
        """Send what waits to be sent; a collector that does not answer loses it."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)
