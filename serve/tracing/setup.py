"""Tracing as OpenTelemetry's standard variables ask for it."""

import os

from serve.tracing.tracing import SilentTracing, Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


def tracing_from_environment() -> Tracing:
    """Traces to `OTEL_EXPORTER_OTLP_ENDPOINT`, or none where it is unset or `OTEL_SDK_DISABLED` is true.

    Everything else (service name, headers, sampling, batching) is read from its own variable by OpenTelemetry's SDK.

    Raises:
        ValueError: OpenTelemetry is not installed, or another protocol than HTTP is asked for.
    """
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if endpoint is None or disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return SilentTracing()
    for name in _PROTOCOLS:
        if (protocol := os.environ.get(name, _PROTOCOL)) != _PROTOCOL:
            raise ValueError(f"{name} is {protocol!r}; traces are sent by {_PROTOCOL} (port 4318 of most collectors)")
    try:
        from serve.tracing.otel import OtelTracing, exporting_provider
    except ImportError as error:
        raise ValueError(
            f"{endpoint} asks for traces, and {error.name} is not installed: pip install 'overtone[otel]', or unset it"
        ) from error
    return OtelTracing(exporting_provider())
