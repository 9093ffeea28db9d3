"""Traces of requests: a span a request, with the router's, and the engine's queue, prefill and decode, under it.

OpenTelemetry is an extra, `overtone[otel]`; nothing of it is imported before a collector's address asks for it.
"""

from serve.tracing.tracing import SilentTracing, Tracing, tracing_from_environment

__all__ = ["SilentTracing", "Tracing", "tracing_from_environment"]
