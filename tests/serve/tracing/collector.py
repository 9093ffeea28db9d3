"""A collector of traces, as OpenTelemetry's exporter knows them."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


class Collector:
    """What was sent.

    Attributes:
        environment: the variables that let a process send its spans here, at once.
    """

    def __init__(self, port: int):
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        self.bodies: list[bytes] = []

    def resources(self) -> list[ResourceSpans]:
        """Spans with the processes that sent them."""
        return [spans for body in self.bodies for spans in ExportTraceServiceRequest.FromString(body).resource_spans]

    def spans(self, trace: str) -> dict[str, Span]:
        """Name → span, of one trace."""
        found = [span for sent in self.resources() for scope in sent.scope_spans for span in scope.spans]
        return {span.name: span for span in found if span.trace_id.hex() == trace}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Collect until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
