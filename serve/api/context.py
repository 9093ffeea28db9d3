"""The outermost layer around every request: id, metrics, access log, a client that goes, unexpected errors."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import internal
from serve.metrics import HttpMetrics

_Result = TypeVar("_Result")

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for it. Only the access log and the counters see the response."""


class ClientGone(Exception):  # noqa: N818 - not an error
    """The client closed the connection before its reply was complete."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `work`, and cancel it as soon as the client disconnects. The request's body must have been read.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_KEY = "overtone"
_ID = re.compile(r"[!-~]{1,128}")

access_log = logging.getLogger("overtone.access")
error_log = logging.getLogger("overtone.error")


@dataclass
class RequestContext:
    """What the layers of one request tell each other.

    Attributes:
        request_id: the client's `request_id` or `X-Request-Id`, else a new one; goes out as `x-request-id`.
        user: OpenAI's `user` field, for the log.
        expert: what runs or is changed, for the log.
        key: fingerprint of the API key, for the log; None if there is none.
        prompts: their texts, if they are to be logged.
    """

    request_id: str
    user: str | None = None
    expert: str | None = None
    key: str | None = None
    prompts: tuple[str, ...] = ()


def context_of(scope: Mapping[str, Any]) -> RequestContext:
    """The context of a request, from its ASGI scope or its `Request`."""
    context: RequestContext = scope[_KEY]
    return context


class ContextMiddleware:
    """Gives each request a context, times and logs it, and answers 500 if nothing else answered.

    Args:
        app: what answers.
        metrics: counts the requests.
        quiet_paths: paths whose successes are logged at DEBUG: probes would fill the log.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, quiet_paths: Collection[str] = ()):
        self._app = app
        self._metrics = metrics
        self._quiet = frozenset(quiet_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        context = RequestContext(given if _ID.fullmatch(given) else uuid.uuid4().hex)
        scope[_KEY] = context
        status: int | None = None

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = context.request_id
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception:
            error_log.exception("request %s failed", context.request_id)
            if status is None:
                answer = internal(f"internal error; the server's log has it under request id {context.request_id}")
                await answer.response()(scope, receive, tagged)
        finally:
            seconds = time.perf_counter() - began
            code = status or CLIENT_CLOSED_REQUEST
            handler = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.request(handler, scope["method"], code, seconds)
            quiet = code < 400 and scope["path"].removeprefix(scope.get("root_path", "")) in self._quiet
            _log_access(logging.DEBUG if quiet else logging.INFO, context, scope, code, seconds)


def _log_access(level: int, context: RequestContext, scope: Scope, status: int, seconds: float) -> None:
    if not access_log.isEnabledFor(level):
        return
    prompts = f" prompts={list(context.prompts)!a}" if context.prompts else ""
    fields = {
        "request_id": context.request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 6),
        "expert": context.expert,
        "user": context.user,
        "key": context.key,
        **({"prompts": context.prompts} if context.prompts else {}),
    }
    access_log.log(
        level,
        "%s %s %s %d %.4fs expert=%s user=%s key=%s%s",
        *(context.request_id, scope["method"], ascii(scope["path"])[1:-1], status, seconds),
        *(ascii(context.expert)[1:-1] if context.expert else "-", "-" if context.user is None else ascii(context.user)),
        *(context.key or "-", prompts),
        extra={"fields": fields},
    )
