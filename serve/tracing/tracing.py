"""What the server tells about its requests as they happen, and the tracing that listens to none of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from starlette.types import ASGIApp

from serve.engine import RequestRecord
from serve.router import Decision


class Tracing(Protocol):
    """Makes spans."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """An application that opens a span around each request of the API, below its caller's where it names one."""

    def route(self, decide: Callable[[], Decision]) -> Decision:
        """Let the router decide, in a span."""

    def admission(self, request_id: str) -> AbstractContextManager[None]:
        """Hand a request to the engine in this block: its spans will be below the one that is open here."""

    def on_finish(self, record: RequestRecord) -> None:
        """Make the spans of a request that the engine has finished. May be called from any thread."""


class SilentTracing:
    """Makes none."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application as it is."""
        return app

    def route(self, decide: Callable[[], Decision]) -> Decision:
        """Decide."""
        return decide()

    def admission(self, request_id: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing."""
        return nullcontext()

    def on_finish(self, record: RequestRecord) -> None:
        """Ignore."""
