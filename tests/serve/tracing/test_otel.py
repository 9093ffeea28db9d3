"""Spans of requests on the real engine, in the in-memory exporter."""

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.config import ServerSettings
from serve.engine import EngineConfig, RequestRecord
from serve.metrics import Metrics
from serve.tracing import tracing_from_environment
from serve.tracing.otel import OtelTracing, exporting_provider
from tests.serve.api.bundles import MAX_MODEL_LEN, TOPICS, write_speaking_bundle
from tests.serve.api.fakes import live
from tests.serve.tracing.collector import collecting

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def tracing(exporter: InMemorySpanExporter) -> OtelTracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OtelTracing(provider)


@pytest.fixture(scope="module")
def url(tracing: OtelTracing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = write_speaking_bundle(tmp_path_factory.mktemp("speaker") / "bundle").bundle.path
    settings = ServerSettings(bundle, engine=EngineConfig(kv_cache_bytes=2**24))
    metrics = Metrics()
    runtime = load_runtime(settings, metrics, tracing)
    runtime.engine.start()
    try:
        with live(Service(metrics, runtime, tracing=tracing)) as url:
            yield url
    finally:
        asyncio.run(runtime.engine.shutdown(0))


@pytest.fixture
def http(url: str, exporter: InMemorySpanExporter) -> Iterator[httpx.Client]:
    exporter.clear()
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def spans(exporter: InMemorySpanExporter, server: str) -> dict[str, ReadableSpan]:
    """All spans by name, once the server's is there: it ends after its reply."""
    deadline = time.monotonic() + 20
    while server not in (found := {span.name: span for span in exporter.get_finished_spans()}):
        assert time.monotonic() < deadline, list(found)
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_and_what_is_below_it(http: httpx.Client, exporter: InMemorySpanExporter, stream: bool):
    body = {"model": "auto", "prompt": TOPICS["sql"], "max_tokens": 5, "ignore_eos": True, "stream": stream}
    reply = http.post("/v1/completions", json=body, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    found = spans(exporter, "POST /v1/completions")
    assert set(found) == {"POST /v1/completions", "route", "queue", "prefill", "decode"}
    root = found.pop("POST /v1/completions")
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == CALLER
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["overtone.request_id"] == reply.headers["x-request-id"]
    assert root.attributes["gen_ai.response.model"] == "sql"
    assert {span.parent.span_id for span in found.values()} == {root.context.span_id}
    assert found["route"].attributes["overtone.expert"] == "sql"
    assert found["prefill"].attributes["gen_ai.usage.input_tokens"] == len(TOPICS["sql"])
    assert found["decode"].attributes["gen_ai.usage.output_tokens"] == 5
    assert found["decode"].attributes["gen_ai.response.finish_reasons"] == ("length",)


def test_the_intervals_follow_each_other(http: httpx.Client, exporter: InMemorySpanExporter):
    http.post("/v1/completions", json={"model": "sql", "prompt": "x", "max_tokens": 5, "ignore_eos": True})
    found = spans(exporter, "POST /v1/completions")
    assert "route" not in found
    for before, after in (("queue", "prefill"), ("prefill", "decode")):
        assert found[before].start_time <= found[before].end_time == found[after].start_time <= found[after].end_time


def test_every_choice_has_its_own(http: httpx.Client, exporter: InMemorySpanExporter):
    http.post("/v1/completions", json={"model": "sql", "prompt": "x", "max_tokens": 3, "n": 3, "ignore_eos": True})
    spans(exporter, "POST /v1/completions")
    decoded = [span for span in exporter.get_finished_spans() if span.name == "decode"]
    assert len({span.attributes["overtone.choice"] for span in decoded}) == 3


def test_refused_requests_leave_nothing_behind(
    http: httpx.Client, exporter: InMemorySpanExporter, tracing: OtelTracing
):
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "x" * (MAX_MODEL_LEN + 1)})
    found = spans(exporter, "POST /v1/completions")
    assert found["POST /v1/completions"].attributes["http.response.status_code"] == reply.status_code == 400
    with pytest.raises(RuntimeError), tracing.admission("refused"):
        raise RuntimeError
    assert tracing._parents == {}


def test_the_engines_spans_of_another_process_go_below_this_ones(exporter: InMemorySpanExporter):
    """As under `overtone deploy`: the ingress opens the request's span, a replica's engine finishes the request."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    ingress, replica = OtelTracing(provider), OtelTracing(provider)
    exporter.clear()
    with provider.get_tracer("test").start_as_current_span("POST") as root:
        carried = ingress.carry()
    with replica.admission("r", carried):
        pass
    replica.on_finish(RequestRecord("r", ("sql",), 3, 0, 5, "length", 1.0, 2.0, 3.0, 4.0))
    replica.flush()
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"POST", "queue", "prefill", "decode"}
    assert {found[name].parent.span_id for name in ("queue", "prefill", "decode")} == {root.context.span_id}
    assert ingress._parents == replica._parents == {}


def test_probes_are_not_traced(http: httpx.Client, exporter: InMemorySpanExporter):
    http.get("/metrics")
    http.get("/health")
    http.get("/v1/models")
    assert set(spans(exporter, "GET /v1/models")) == {"GET /v1/models"}


def test_a_collector_gets_them(monkeypatch: pytest.MonkeyPatch):
    with collecting() as collector:
        for name, value in {**collector.environment, "OTEL_SERVICE_NAME": "overtone-test"}.items():
            monkeypatch.setenv(name, value)
        assert isinstance(tracing_from_environment(), OtelTracing)
        provider = exporting_provider()
        provider.get_tracer("test").start_span("hello").end()
        provider.shutdown()
    (spans_of_resource,) = collector.resources()
    attributes = {pair.key: pair.value.string_value for pair in spans_of_resource.resource.attributes}
    assert attributes["service.name"] == "overtone-test"
    assert spans_of_resource.scope_spans[0].spans[0].name == "hello"
