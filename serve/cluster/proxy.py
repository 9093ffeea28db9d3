"""What Ray Serve's HTTP proxy does to our replies, put right."""

import asyncio
import json
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAME = b"x-request-id"
_PROBES = frozenset({"/health", "/ready"})
_PROBE_SECONDS = 0.5
"""A probe that is not answered by then finds no ingress; Kubernetes gives up after 1 second."""

RETRY_AFTER_SECONDS = 1

_NO_ROUTE = b"Ping http://.../-/routes"
"""Ray Serve says it in its 404."""

_LOST = "the server that handled the request was lost; try again"


class OneRequestId:
    """Leaves the request id of the application in a reply: the proxy adds another, or the same once more."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""

        async def once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower(), value) for name, value in message["headers"]]
                ids = [header for header in headers if header[0] == _NAME]
                message["headers"] = [header for header in headers if header[0] != _NAME] + ids[:1]
            await send(message)

        await self._app(scope, receive, once)


class AlwaysAnswered:
    """Answers in the API's format while no ingress runs: before it starts, while it is replaced, and after it ended.

    - A probe does not wait for an ingress: `/ready` is 503 and `/health` 200, as while one process loads.
    - A request whose ingress is lost before its reply began gets 503; a stream gets an error event and `[DONE]`.
    - If no application is deployed, the API's paths are not 404, but what they are while one process loads.

    Replies of an application are passed on unchanged.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send, scope["path"])
        if scope["path"] in _PROBES:
            answering = asyncio.ensure_future(self._app(scope, receive, reply.send))
            try:
                begun = asyncio.create_task(reply.begun.wait())
                await asyncio.wait({answering, begun}, timeout=_PROBE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                begun.cancel()
                if not reply.begun.is_set() and not answering.done():
                    reply.closed = True
                    await _with_id(_nobody(scope["path"]), scope)(scope, receive, send)
                    return
                await answering
            finally:
                answering.cancel()
        else:
            await self._app(scope, receive, reply.send)
        if not reply.begun.is_set():
            await _with_id(_unavailable(_LOST, "engine_dead"), scope)(scope, receive, send)
        elif reply.unfinished_stream:
            events = f"data: {json.dumps(error_document(_LOST, 'engine_dead'))}\n\ndata: [DONE]\n\n"
            await send({"type": "http.response.body", "body": events.encode(), "more_body": False})


class _Reply:
    """A reply on its way to the client.

    Attributes:
        begun: set once its head has been sent, or is held back.
        closed: whether the rest of it must be dropped.
        unfinished_stream: whether it is an event stream whose end has not been sent.
    """

    def __init__(self, send: Send, path: str):
        self.begun = asyncio.Event()
        self.closed = self.unfinished_stream = False
        self._send, self._path = send, path
        self._held: Message | None = None

    async def send(self, message: Message) -> None:
        """Pass a message on. The head of a 404 in plain text waits for its body, which says whose it is."""
        if self.closed:
            return
        if message["type"] == "http.response.start":
            self.begun.set()
            content_type = Headers(raw=message["headers"]).get("content-type", "")
            self.unfinished_stream = content_type.startswith("text/event-stream")
            ours = self._path in _PROBES or self._path.startswith("/v1/")
            if ours and message["status"] == 404 and content_type.startswith("text/plain"):
                self._held = message
                return
        elif message["type"] == "http.response.body":
            if self._held is not None:
                head, self._held = self._held, None
                if _NO_ROUTE in message.get("body", b""):
                    self.closed = True
                    await self._instead(head)
                    return
                await self._send(head)
            if not message.get("more_body", False):
                self.unfinished_stream = False
        await self._send(message)

    async def _instead(self, head: Message) -> None:
        """What the API says without a model for Ray Serve's 404, under its request id."""
        response = _nobody(self._path)
        ids = [header for header in head["headers"] if header[0].lower() == _NAME]
        headers = [*response.raw_headers, *ids]
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self._send({"type": "http.response.body", "body": response.body, "more_body": False})


def _nobody(path: str) -> Response:
    """The reply while there is no ingress."""
    if path == "/health":
        return JSONResponse({"status": "ok", "phase": "loading"})
    return _unavailable("no model is deployed here, or it is still loading or shutting down", "loading")


def error_document(message: str, code: str) -> dict[str, Any]:
    """The API's body of a 503. `serve.api.errors` has it, too, but imports torch, which the proxy need not."""
    return {"error": {"message": message, "type": "service_unavailable", "param": None, "code": code}}


def _unavailable(message: str, code: str) -> JSONResponse:
    return JSONResponse(error_document(message, code), 503, {"retry-after": str(RETRY_AFTER_SECONDS)})


def _with_id(response: Response, scope: Scope) -> Response:
    """The response under the request id that the proxy gave the request."""
    response.headers["x-request-id"] = Headers(scope=scope).get("x-request-id") or uuid.uuid4().hex
    return response


def middlewares() -> list[Middleware]:
    """The proxy's, innermost first: `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names this function."""
    return [Middleware(AlwaysAnswered), Middleware(OneRequestId)]
