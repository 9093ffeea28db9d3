"""Server-sent events, as a response that stops its source when the client goes."""

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.disconnect import ClientGone, unless_gone
from serve.api.errors import ApiError, internal

_DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends each document as a `data:` event, then `[DONE]`.

    An error of the source becomes a last event `{"error": …}`, as the status line has been sent by then. One that is
    no `ApiError` is a fault of this program and is raised again after that.

    Args:
        documents: what to send.
        headers: further headers.
        close: called at the end, also where `documents` was never begun.
    """

    media_type = "text/event-stream"

    def __init__(
        self, documents: AsyncGenerator[dict[str, Any], None], headers: Mapping[str, str], close: Callable[[], None]
    ):
        # A proxy that buffers or compresses would hold tokens back.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._documents = documents
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send everything, or stop where the client goes."""
        try:
            with contextlib.suppress(ClientGone, OSError):
                await unless_gone(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        fault: Exception | None = None
        async with contextlib.aclosing(self._documents) as documents:
            try:
                async for document in documents:
                    await _event(send, document)
            except ApiError as error:
                await _event(send, error.body())
            except OSError:
                raise  # the client has gone
            except Exception as error:
                fault = error
                await _event(send, internal("internal error; the server's log has it under the x-request-id").body())
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})
        if fault is not None:
            raise fault


async def _event(send: Send, document: dict[str, Any]) -> None:
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
