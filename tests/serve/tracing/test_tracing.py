import sys

import pytest

from serve.tracing import SilentTracing, tracing_from_environment

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_none_by_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert isinstance(tracing_from_environment(), SilentTracing)


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_none_where_it_is_turned_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setenv(name, value)
    assert isinstance(tracing_from_environment(), SilentTracing)


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; traces are sent by http/protobuf"):
        tracing_from_environment()


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.delitem(sys.modules, "serve.tracing.otel", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ValueError, match=r"pip install 'overtone\[otel\]'"):
        tracing_from_environment()
