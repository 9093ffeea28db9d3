"""HTTP/1.1 connections that are bounded in number, time and size, and refused in the API's own form.

uvicorn's protocol over h11, whichever parsers are installed: h11 bounds the size of a head and does not send chunks to
HTTP/1.0 clients. It costs about 80 µs of CPU more per request than httptools and 5 µs per streamed event.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from serve.api.errors import ApiError, not_http, request_timeout, shortened, too_many_connections
from serve.api.security.open_files import ACCEPTS, SPARE_CONNECTIONS
from serve.config import ApiSettings, ConnectionSettings

OVER_LIMIT = "overtone.over_limit"
"""Key in an ASGI scope's `state`: the connection is one too many."""

_IDLE_GRACE = 1.0
"""Seconds after which an idle connection may be closed for a new one: its client may be about to send a request."""

_BODY_GRACE = 1.0
"""Seconds after the body's timeout, which the application answers, until the connection is closed without it."""

_CLOSE_SECONDS = 0.1
"""How long the client of an idle connection gets to answer TLS's end of it when the server stops."""


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration of a server with bounded connections.

    Args:
        app: what answers.
        api: sizes and times of requests.
        connections: number and times of connections.
        **options: further ones of uvicorn's.
    """

    def __init__(self, app: FastAPI, api: ApiSettings, connections: ConnectionSettings, **options: Any):
        self.api = api
        self.connections = connections
        self.idle: dict[HttpConnection, float] = {}  # → since when, oldest first
        super().__init__(
            app,
            http=HttpConnection,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            backlog=ACCEPTS,  # asyncio accepts as many in a row
            timeout_keep_alive=connections.keep_alive_timeout,  # type: ignore[arg-type]  # seconds of any kind
            h11_max_incomplete_event_size=api.max_header_bytes,
            **options,
        )


class _Phase(Enum):
    """What a connection waits for."""

    IDLE = "the next request"
    HEAD = "the rest of a request's head"
    BODY = "the rest of a body"
    REPLY = "the application"


class HttpConnection(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ):
        assert isinstance(config, HttpConfig)
        super().__init__(config, server_state, app_state, _loop)
        self._api = config.api
        self._bounds = config.connections
        self._idle = config.idle
        self._phase: _Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unwritten = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, close another for it that has been idle longest, or refuse it."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # so that writing pauses whenever the client does not keep up
        excess = len(self.connections) - self._bounds.max_connections
        if excess > 0 and not self._close_an_idle_one():
            if excess > SPARE_CONNECTIONS:
                self._refuse(too_many_connections())
                return
            self.app_state = {**self.app_state, OVER_LIMIT: True}
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._idle.pop(self, None)
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, in parts that bound the head that is parsed at once."""
        size = self._api.max_header_bytes
        for start in range(0, len(data), size):
            super().data_received(data[start : start + size])
            if self.transport.is_closing():
                return
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) > size:
            self.transport.abort()  # requests sent ahead of their time, which would be parsed in one go
            return
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        """Close the connection, or let the reply under way be its last one."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(_CLOSE_SECONDS, self._abort_unanswered)

    def _abort_unanswered(self) -> None:
        # A client that keeps an idle TLS connection may not read that it ends. The server would wait for its answer.
        if self.transport.get_write_buffer_size() == 0:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP. Called while h11's error is handled."""
        error = sys.exception()
        self._refuse(not_http(shortened(str(error) if error else msg), getattr(error, "error_status_hint", 400)))

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._unwritten = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self._bounds.write_timeout, self._write_timed_out)

    def resume_writing(self) -> None:
        """The client has read everything."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _watch(self) -> None:
        """Set the time limit of what the connection waits for now."""
        if self.transport.is_closing():
            return
        phase = self._waits_for()
        if phase is self._phase:
            return
        self._phase = phase
        self._idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if phase is _Phase.IDLE:
            self._idle[self] = self.loop.time()
            self._after(self._bounds.keep_alive_timeout, self.timeout_keep_alive_handler)
        elif phase is _Phase.HEAD:
            self._after(self._bounds.header_timeout, self._head_timed_out)
        elif phase is _Phase.BODY:
            self._after(self._api.body_timeout + _BODY_GRACE, self._body_timed_out)

    def _waits_for(self) -> _Phase:
        if self.conn.their_state is h11.IDLE:
            return _Phase.HEAD if self.conn.trailing_data[0] else _Phase.IDLE
        return _Phase.BODY if self.conn.their_state is h11.SEND_BODY else _Phase.REPLY

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._timer = self.loop.call_later(seconds, action)

    def _head_timed_out(self) -> None:
        self._refuse(request_timeout("headers", self._bounds.header_timeout, "--header-timeout"))

    def _body_timed_out(self) -> None:
        self._refuse(request_timeout("body", self._api.body_timeout, "--body-timeout"))

    def _write_timed_out(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left < self._unwritten:  # slow, but it reads
            self._unwritten = left
            self._write_timer = self.loop.call_later(self._bounds.write_timeout, self._write_timed_out)
        else:
            self.transport.abort()

    def _close_an_idle_one(self) -> bool:
        oldest, since = next(iter(self._idle.items()), (None, 0.0))
        if oldest is None or self.loop.time() - since < _IDLE_GRACE:
            return False
        del self._idle[oldest]
        oldest.timeout_keep_alive_handler()
        return True

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # a reply is under way, or has been sent
            self.transport.abort()
            return
        body = json.dumps(error.body()).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **error.headers,
            "connection": "close",
        }
        events = (
            h11.Response(status_code=error.status, headers=list(headers.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
