"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's objects, and the events of a stream."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from serve.api.errors import ApiError
from serve.api.generate.answer import answer
from serve.api.generate.prompts import chat_prompt
from serve.api.generate.service import Runtime, Service
from serve.api.openai.blocks import Block, BlockEvent, BlockReply
from serve.api.schemas import AnthropicRequest, BodyParser
from serve.api.text.choice import Piece
from serve.config import ApiSettings

_ERRORS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """An error in Anthropic's words, with `param` and `code` beside them."""
    kind = _ERRORS.get(error.status, "invalid_request_error")
    about = {"message": error.message, "param": error.param, "code": error.code}
    return {"type": "error", "error": {"type": kind, **about}}


class AnthropicReply(BlockReply[AnthropicRequest]):
    """`message`, and its events."""

    id_prefix: ClassVar = "msg_"

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The message, from all pieces."""
        self.read_all(pieces[0])
        return self._message([_block(block) for block in self.blocks])

    def opening(self) -> Iterator[dict[str, Any]]:
        """The event before the first token."""
        yield {"type": "message_start", "message": self._message([])}

    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        """The events of a piece."""
        for event in self.read(piece):
            yield {"type": f"content_block_{event.step}", "index": event.block.index, **_part(event)}

    def closing(self) -> Iterator[dict[str, Any]]:
        """The events after the last token."""
        message = self._message([])
        delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        yield {"type": "message_delta", "delta": delta, "usage": message["usage"]}
        yield {"type": "message_stop"}

    def failure(self, error: ApiError) -> dict[str, Any]:
        """An error as the last event."""
        return anthropic_error(error)

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        target, usage = self._job.choices[0].target, self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        stopped = self.finish_reason == "stop" and isinstance(self.stop_reason, str)
        reasons = {None: None, "length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}
        return {
            "id": self._head["id"],
            "type": "message",
            "role": "assistant",
            "model": self._head["model"],
            "content": content,
            "stop_reason": "stop_sequence" if stopped else reasons[self.finish_reason],
            "stop_sequence": self.stop_reason if stopped else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"] - cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached,
                "output_tokens": usage["completion_tokens"],
            },
            "system_fingerprint": self._head["system_fingerprint"],
            "expert": target.label,
            "confidence": target.confidence,
        }


def _block(block: Block) -> dict[str, Any]:
    if block.call is not None:
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": _input(block.text)}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _input(arguments: str) -> Any:
    """A call's arguments as an object. Arguments that were cut, or are not valid JSON, are a string in it."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


def _part(event: BlockEvent) -> dict[str, Any]:
    if event.step == "stop":
        return {}
    if event.step == "start":
        return {"content_block": _block(event.block)}
    if event.block.kind == "call":
        return {"delta": {"type": "input_json_delta", "partial_json": event.text}}
    if event.block.kind == "reasoning":
        return {"delta": {"type": "thinking_delta", "thinking": event.text}}
    return {"delta": {"type": "text_delta", "text": event.text}}


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    @routes.post("/v1/messages")
    async def messages(request: Request) -> Response:
        """Answer a conversation."""
        try:
            return await answer(request, service, settings, bodies, AnthropicRequest, AnthropicReply)
        except ApiError as error:
            return _refusal(error)

    @routes.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        """The tokens of a conversation's prompt."""
        try:
            runtime = service.ready()
            body = await bodies.read(request, AnthropicRequest)
            return JSONResponse({"input_tokens": await asyncio.to_thread(_length, runtime, body)})
        except ApiError as error:
            return _refusal(error)

    return routes


def _length(runtime: Runtime, body: AnthropicRequest) -> int:
    """Tokens of the prompt that the one that would answer gets.

    Raises:
        ApiError: as for a conversation.
    """
    forced = runtime.catalogue.resolve(body.model)
    return len(chat_prompt(runtime, runtime.foreseen(forced, body.chat.user_texts), body.chat).tokens)


def _refusal(error: ApiError) -> Response:
    return JSONResponse(anthropic_error(error), status_code=error.status, headers=dict(error.headers))
