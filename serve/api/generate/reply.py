"""What a client gets for a job, in any API's words: whole, or as server-sent events."""

import asyncio
import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.context import ClientGone, unless_gone
from serve.api.errors import ApiError, internal
from serve.api.generate.prepare import Job
from serve.api.schemas import Body
from serve.api.text.choice import Piece
from serve.api.text.codec import TextCodec


class Reply(ABC):
    """Builds the reply to one job.

    Args:
        asked: the request's body.
        job: the job, which counts its tokens while it runs.
        codec: the tokenizer.
        request_id: becomes part of the reply's id.
        fingerprint: of the weights that answer.
        logprobs: whether they were asked for.
    """

    id_prefix: ClassVar[str]
    named_events: ClassVar = True
    """Whether the events of a stream have names, their `type`, and no `[DONE]` ends them."""

    def __init__(self, asked: Body, job: Job, codec: TextCodec, request_id: str, fingerprint: str, logprobs: bool):  # noqa: ARG002
        self._job = job
        self._codec = codec
        self._logprobs = logprobs
        self._head = {
            "id": f"{self.id_prefix}{request_id}",
            "created": int(time.time()),
            "model": job.label,
            "system_fingerprint": fingerprint,
        }

    def headers(self) -> dict[str, str]:
        """What ran; of several prompts all names, and the lowest confidence.

        Also whether a chat kept or changed its expert, and whether tools were left out.
        """
        headers = {"x-overtone-expert": quote(self._job.label, safe="+,")}
        if self._job.format.ignored:
            headers["x-overtone-tools"] = "ignored"
        confidences = [choice.target.confidence for choice in self._job.choices]
        if known := [confidence for confidence in confidences if confidence is not None]:
            headers["x-overtone-confidence"] = f"{min(known):.4f}"
        if session := self._job.choices[0].target.session:
            headers["x-overtone-session"] = session
        return headers

    @abstractmethod
    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The reply to a plain request, from all pieces of every choice."""

    def opening(self) -> Iterator[dict[str, Any]]:
        """Events of a streamed reply before its first piece."""
        return iter(())

    @abstractmethod
    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """Events that say a piece of one choice."""

    def closing(self) -> Iterator[dict[str, Any]]:
        """Events after the last piece."""
        return iter(())

    @abstractmethod
    def failure(self, error: ApiError) -> dict[str, Any]:
        """The last event of a stream that fails."""

    def usage(self) -> dict[str, Any]:
        """Tokens so far, those of candidates that are not returned too; a prompt counts once."""
        generated = sum(choice.text.tokens for choice in self._job.choices)
        # The first candidate of each prompt: the later ones may find what it computed in the cache.
        cached = sum(choice.text.cached_tokens for choice in self._job.choices[:: self._job.candidates])
        return {
            "prompt_tokens": self._job.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._job.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"


class EventStream(Response):
    """Sends each document as a `data:` event, then `[DONE]` if events have no names.

    An error of the source becomes the last event, because the status line has been sent by then. Any other exception
    than `ApiError` is a bug and is raised again after that. While there is nothing to send, comments keep the
    connection open.

    Args:
        documents: what to send.
        reply: whose they are.
        ping_seconds: between comments while nothing comes; 0 for none.
        close: called at the end, also if `documents` was never begun.
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
        """Send everything, or stop when the client disconnects."""
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
