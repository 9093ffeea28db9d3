"""Bounds on one request that hold wherever the application runs: headers, and the time and memory of its body."""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import ApiError, request_timeout, too_many_connections, unavailable
from serve.api.security.connection import OVER_LIMIT
from serve.config import ApiSettings

PROBES = frozenset({"/health", "/ready", "/metrics"})
"""What orchestrators and Prometheus ask every few seconds."""

_MAX_HEADERS = 256

_UNFINISHED_BODIES = 16
"""Longest bodies that fit into the memory for all those that are still coming."""


class RequestLimitsMiddleware:
    """Refuses requests with too many headers, bodies that take too long, and connections over the limit.

    Args:
        app: what answers the others.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings):
        self._app = app
        self._settings = settings
        self._unfinished = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        over_limit = scope.get("state", {}).get(OVER_LIMIT, False)
        refusal = self._refusal(scope, over_limit)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        body = _Body(self, receive)
        expects = Headers(scope=scope).get("expect", "").lower() == "100-continue"

        async def closing(message: Message) -> None:
            # A client that was not asked to continue may send its body or not: the bytes that follow are ambiguous.
            if message["type"] == "http.response.start" and (over_limit or not body.asked):
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, body.receive, closing if over_limit or expects else send)
        finally:
            body.release()

    def _refusal(self, scope: Scope, over_limit: bool) -> ApiError | None:
        headers = scope["headers"]
        size = sum(len(name) + len(value) + 4 for name, value in headers) + len(scope.get("query_string", b""))
        if size > self._settings.max_header_bytes:
            message = f"the headers have {size} bytes; at most {self._settings.max_header_bytes} are allowed"
            return ApiError(431, message, code="headers_too_large")
        if len(headers) > _MAX_HEADERS:
            message = f"the request has {len(headers)} headers; at most {_MAX_HEADERS} are allowed"
            return ApiError(431, message, code="headers_too_large")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return too_many_connections() if over_limit and path not in PROBES else None

    def hold(self, size: int) -> None:
        """Count bytes of an unfinished body.

        Raises:
            ApiError: 503, not enough memory for them.
        """
        self._unfinished += size
        if self._unfinished > _UNFINISHED_BODIES * self._settings.max_body_bytes:
            raise unavailable("the server has no memory for more request bodies at the moment", "too_many_bodies")

    def release(self, size: int) -> None:
        """Subtract bytes whose body is complete, or whose client has disconnected."""
        self._unfinished -= size

    @property
    def body_timeout(self) -> float:
        """Seconds that a body may take."""
        return self._settings.body_timeout


class _Body:
    """One request's body while it comes."""

    def __init__(self, limits: RequestLimitsMiddleware, receive: Receive):
        self._limits = limits
        self._receive = receive
        self._deadline = asyncio.get_running_loop().time() + limits.body_timeout
        self._held = 0
        self._complete = False
        self.asked = False

    async def receive(self) -> Message:
        """The next part.

        Raises:
            ApiError: 408, the body took too long; 503, too many bodies are coming.
        """
        self.asked = True
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise request_timeout("body", self._limits.body_timeout, "--body-timeout") from error
        if message.get("more_body", False):
            size = len(message["body"])
            self._held += size
            self._limits.hold(size)
        else:
            self._complete = True
            self.release()
        return message

    def release(self) -> None:
        """Forget what was held."""
        self._limits.release(self._held)
        self._held = 0


class TrailingSlashMiddleware:
    """Takes `/v1/models/` for `/v1/models`.

    A redirect would name the wrong host or scheme behind some proxies, and some clients repeat a POST as a GET.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] == "http":
            path, root = scope["path"], scope.get("root_path", "")
            if path.endswith("/") and path not in ("/", f"{root}/"):
                scope["path"], scope["raw_path"] = path[:-1], scope.get("raw_path", b"").removesuffix(b"/")
        await self._app(scope, receive, send)
