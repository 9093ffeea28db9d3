"""Server-sent events, as a response that stops its source when the client goes."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.disconnect import ClientGone, unless_gone
from serve.api.errors import ApiError, internal
from serve.api.reply import Reply

_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"


class EventStream(Response):
    """Sends each document as a `data:` event, then `[DONE]` where events have no names.

    An error of the source becomes the last event, as the status line has been sent by then. One that is no `ApiError`
    is a fault of this program and is raised again after that. While nothing comes, comments keep the connection open.

    Args:
        documents: what to send.
        reply: whose they are.
        ping_seconds: between comments while nothing comes; 0 for none.
        close: called at the end, also where `documents` was never begun.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        documents: AsyncGenerator[dict[str, Any], None],
        reply: Reply,
        ping_seconds: float,
        close: Callable[[], None],
    ):
        # A proxy that buffers or compresses would hold tokens back.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **reply.headers()})
        del self.headers["content-length"]
        self._documents = documents
        self._reply = reply
        self._ping_seconds = ping_seconds
        self._close = close
        self._sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send everything, or stop where the client goes."""
        try:
            with contextlib.suppress(ClientGone, OSError):
                await unless_gone(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sent = time.monotonic()
        pings = asyncio.create_task(self._ping(send))
        fault: Exception | None = None
        async with contextlib.aclosing(self._documents) as documents:
            try:
                async for document in documents:
                    await self._event(send, document)
            except ApiError as error:
                await self._event(send, self._reply.failure(error))
            except OSError:
                raise  # the client has gone
            except Exception as error:
                fault = error
                about = internal("internal error; the server's log has it under the x-request-id")
                await self._event(send, self._reply.failure(about))
            finally:
                pings.cancel()
                await asyncio.gather(pings, return_exceptions=True)
        end = b"" if self._reply.named_events else _DONE
        await send({"type": "http.response.body", "body": end, "more_body": False})
        if fault is not None:
            raise fault

    async def _ping(self, send: Send) -> None:
        """A comment whenever nothing has been sent for a while: proxies close connections that seem idle."""
        while self._ping_seconds:
            left = self._sent + self._ping_seconds - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
                continue
            self._sent = time.monotonic()
            await send({"type": "http.response.body", "body": _PING, "more_body": True})

    async def _event(self, send: Send, document: dict[str, Any]) -> None:
        data = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        name = f"event: {document['type']}\n" if self._reply.named_events else ""
        self._sent = time.monotonic()
        await send({"type": "http.response.body", "body": f"{name}data: {data}\n\n".encode(), "more_body": True})
