"""Tracing: the spans of the server's requests, and the environment variables that enable them."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

from starlette.types import ASGIApp

from serve.decision import Decision
from serve.engine import EngineObserver, RequestRecord, StepRecord
from serve.experts import LoadFailure


class Tracing(Protocol):
    """Makes spans."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """An application that opens a span around each request of the API, below its caller's if it names one."""

    def route(self, decide: Callable[[], Decision]) -> Decision:
        """Let the router decide, in a span."""

    def admission(self, request_id: str, caller: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
        """Hand a request to this process' engine in this block.

        Its spans will be below the one that is open here, or below the one that `caller` names, which `carry` gave in
        another process.
        """

    def carry(self) -> Mapping[str, str]:
        """The name of the span that is open here, as headers, for the process whose engine runs the request."""

    def on_finish(self, record: RequestRecord) -> None:
        """Make the spans of a request that the engine has finished. May be called from any thread."""

    def flush(self) -> None:
        """Send what was made, within two seconds. For a process that is killed next."""


class SilentTracing:
    """Makes none."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application, unchanged."""
        return app

    def route(self, decide: Callable[[], Decision]) -> Decision:
        """Decide."""
        return decide()

    def admission(
        self,
        request_id: str,  # noqa: ARG002
        caller: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def carry(self) -> Mapping[str, str]:
        """No span is open."""
        return {}

    def on_finish(self, record: RequestRecord) -> None:
        """Ignore."""

    def flush(self) -> None:
        """There is nothing to send."""


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


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


def tracing_from_environment() -> Tracing:
    """Traces to `OTEL_EXPORTER_OTLP_ENDPOINT`, or none if it is unset or `OTEL_SDK_DISABLED` is true.

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
