"""The outermost layer around every request: id, metrics, access log, and the last resort for errors."""

import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.disconnect import CLIENT_CLOSED_REQUEST
from serve.api.errors import internal
from serve.metrics import HttpMetrics

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
        expert: what runs, for the log.
        prompts: their texts, where the log is to hold them.
    """

    request_id: str
    user: str | None = None
    expert: str | None = None
    prompts: tuple[str, ...] = ()


def context_of(request: Request) -> RequestContext:
    """The context of a request."""
    context: RequestContext = request.scope[_KEY]
    return context


class ContextMiddleware:
    """Gives each request a context, times and logs it, and answers 500 where nothing else answered."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics):
        self._app = app
        self._metrics = metrics

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
            _log_access(context, scope, code, seconds)


def _log_access(context: RequestContext, scope: Scope, status: int, seconds: float) -> None:
    prompts = f" prompts={list(context.prompts)!a}" if context.prompts else ""
    fields = {
        "request_id": context.request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 6),
        "expert": context.expert,
        "user": context.user,
        **({"prompts": context.prompts} if context.prompts else {}),
    }
    access_log.info(
        "%s %s %s %d %.4fs expert=%s user=%s%s",
        *(context.request_id, scope["method"], ascii(scope["path"])[1:-1], status, seconds),
        *(context.expert or "-", "-" if context.user is None else ascii(context.user), prompts),
        extra={"fields": fields},
    )
